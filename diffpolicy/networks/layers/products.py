"""A product with few rows on a CPU, x [M, I] @ weight [O, I].T + bias [O]: several forms, of which the fastest is used.

The environment variable DIFFPOLICY_KERNELS names the form for all layers. Its default, `measured`, times the exact
forms once per process for every shape, type and number of threads, and takes the fastest. Only batches below
TIMED_BATCH are timed, as a control loop has them. Larger ones use `stored`, so that evaluations repeat bit by bit in
other processes: the forms differ in rounding, and a choice by time may differ from process to process.

Shape legend: M rows, I features in, O features out, P parts into which the columns are split.
"""

import math
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

VARIABLE = "DIFFPOLICY_KERNELS"
MEASURED = "measured"
TIMED_BATCH = 8
ROUNDS = 6  # of timing; the first one warms up
MARGIN = 0.95  # the part of the time of `stored` below which another form is worth its copy of the weights
LEAST_COLUMNS = 16  # fewest columns in a part of a product

Bias = Tensor | None
Product = Callable[[], object]  # computes the product into its output


class Form(NamedTuple):
    """One way to compute a product.

    Attributes:
        pack: weight [O, I] -> what the product reads, a view or a copy of the weight.
        bind: (x [M, I], packed, bias, out [M, O]) -> a function that computes the product of what is now in x.
        is_exact: whether it rounds to the type of the weight only, so that `measured` may choose it.
    """

    pack: Callable[[Tensor], Tensor]
    bind: Callable[[Tensor, Tensor, Bias, Tensor], Product]
    is_exact: bool = True


class Shape(NamedTuple):
    """What the times of a product depend on."""

    rows: int
    inputs: int
    outputs: int
    dtype: torch.dtype
    threads: int


_TIMES: dict[Shape, dict[str, float]] = {}  # of this process: microseconds of each form


def setting() -> str:
    """The value of DIFFPOLICY_KERNELS.

    Raises:
        ValueError: it is unknown, or the processor or this build of torch lacks what it needs.
    """
    name = os.environ.get(VARIABLE, MEASURED)
    if name != MEASURED and name not in FORMS:
        raise ValueError(f"{VARIABLE}: {name!r} is unknown, expected one of {', '.join([MEASURED, *sorted(FORMS)])}")
    if name == "bfloat16" and not _has_bfloat16():
        raise ValueError(f"{VARIABLE}: bfloat16 needs a processor with AVX512-BF16 or AMX; leave it unset here")
    if name in ("bfloat16", "onednn") and not _runs(FORMS[name]):
        raise ValueError(f"{VARIABLE}: {name} does not run with this torch and processor; leave it unset here")
    return name


def chosen(weight: Tensor, rows: int, batch: int) -> str:
    """The name of the form for a product of `rows` rows with `weight` [O, I], in a batch of `batch` trajectories."""
    name = setting()
    if name != MEASURED:
        return name if weight.dtype == torch.float32 or name in ("stored", "packed") else "stored"
    if batch >= TIMED_BATCH:
        return "stored"
    shape = Shape(rows, weight.shape[1], weight.shape[0], weight.dtype, torch.get_num_threads())
    if shape not in _TIMES:
        _TIMES[shape] = _timed(shape)
    return _fastest(_TIMES[shape])


def report() -> list[str]:
    """What was timed in this process and the choice, one line per shape; empty if nothing was."""
    return [
        f"{shape.rows} rows, {shape.inputs} -> {shape.outputs}, {str(shape.dtype).removeprefix('torch.')}, "
        f"{shape.threads} threads: {_fastest(times)} ({', '.join(f'{name} {us:.0f} us' for name, us in times.items())})"
        for shape, times in sorted(_TIMES.items(), key=lambda one: one[0][:3])
    ]


def _fastest(times: dict[str, float]) -> str:
    best = min(times, key=lambda name: times[name])
    return best if times[best] < MARGIN * times["stored"] else "stored"


def _timed(shape: Shape) -> dict[str, float]:
    """The least microseconds of each exact form. They take turns, so that large weights do not stay in the cache."""
    x, weight = torch.ones(shape.rows, shape.inputs, dtype=shape.dtype), torch.ones(shape.outputs, shape.inputs)
    weight, bias, out = weight.to(x), x.new_ones(shape.outputs), x.new_empty(shape.rows, shape.outputs)
    exact = {name: form for name, form in FORMS.items() if form.is_exact}
    if shape.dtype != torch.float32 or not _runs(FORMS["onednn"]):
        del exact["onednn"]
    bound = {name: form.bind(x, form.pack(weight), bias, out) for name, form in exact.items()}
    taken: dict[str, list[float]] = {name: [] for name in bound}
    for _ in range(ROUNDS):
        for name, product in bound.items():
            start = time.perf_counter()
            product()
            taken[name].append(1e6 * (time.perf_counter() - start))
    return {name: min(times[1:]) for name, times in taken.items()}


def _parts(columns: int) -> int:
    """The number of equal parts into which `columns` columns are split; it divides the number of threads.

    The BLAS library runs a product with few rows on a single thread, a batch of products on all.
    """
    return math.gcd(max(1, columns // LEAST_COLUMNS), torch.get_num_threads())


def _columns(weight: Tensor) -> Tensor:
    """The weight as it is stored, a view [P, I, O / P]."""
    return weight.unflatten(0, (_parts(len(weight)), -1)).transpose(1, 2)


def _packed_columns(weight: Tensor) -> Tensor:
    return _columns(weight).contiguous()


def _blas(x: Tensor, columns: Tensor, bias: Bias, out: Tensor) -> Product:
    parts, _, width = columns.shape
    if parts == 1:
        matrix = columns[0]
        if bias is None:
            return lambda: torch.mm(x, matrix, out=out)
        return lambda: torch.addmm(bias, x, matrix, out=out)
    spread, product = x.expand(parts, -1, -1), x.new_empty(parts, len(x), width)
    biases = x.new_zeros(parts, 1, 1) if bias is None else bias.view(parts, 1, width)
    joined = out.view(len(x), parts, width).transpose(0, 1)

    def multiply() -> None:
        torch.baddbmm(biases, spread, columns, out=product)
        joined.copy_(product)

    return multiply


def _blocked(weight: Tensor) -> Tensor:
    """A copy in the order in which oneDNN reads it."""
    return _onednn()._reorder_linear_weight(weight.contiguous())


def _onednn_product(x: Tensor, blocked: Tensor, bias: Bias, out: Tensor) -> Product:
    linear = _onednn()._linear_pointwise
    return lambda: out.copy_(linear(x, blocked, bias, "none", [], ""))


def _blocked_bfloat16(weight: Tensor) -> Tensor:
    return _blocked(weight.bfloat16())


def _bfloat16_product(x: Tensor, blocked: Tensor, bias: Bias, out: Tensor) -> Product:
    linear = _onednn()._linear_pointwise
    if bias is None:
        return lambda: out.copy_(linear(x.bfloat16(), blocked, None, "none", [], ""))
    return lambda: torch.add(linear(x.bfloat16(), blocked, None, "none", [], ""), bias, out=out)


def _onednn() -> Any:
    """The operators that torch's own compiler uses for weights that do not change; not public, hence `_runs`."""
    return torch.ops.mkldnn


FORMS = {
    "stored": Form(_columns, _blas),
    "packed": Form(_packed_columns, _blas),
    "onednn": Form(_blocked, _onednn_product),
    "bfloat16": Form(_blocked_bfloat16, _bfloat16_product, is_exact=False),
}
_RUNS: dict[Form, bool] = {}  # of this process


def _runs(form: Form) -> bool:
    """Whether a form gives the right result in this build of torch, on this processor; tried once per process."""
    if form not in _RUNS:
        weight, x = torch.eye(16), torch.arange(64.0).view(4, 16)
        out = torch.empty(4, 16)
        try:
            form.bind(x, form.pack(weight), torch.ones(16), out)()
            _RUNS[form] = torch.equal(out, x + 1)
        except (AttributeError, RuntimeError, NotImplementedError):
            _RUNS[form] = False
    return _RUNS[form]


def _has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 itself; elsewhere oneDNN emulates it, far slower than float32."""
    flags = [getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
    return any(flag() for flag in flags if flag is not None)
