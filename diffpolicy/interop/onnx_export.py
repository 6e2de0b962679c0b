"""Our policies as ONNX files, which onnxruntime runs without torch: docs/onnx.md.

    encoder.onnx   observations -> the condition
    step.onnx      x, noise, the condition and a row of any sampler -> the x of the next row
    policy.onnx    observations and noise -> a plan, by one sampler

Observations and plans are in physical units, x and noise are encoded. Every file is run by onnxruntime and compared
with torch before it is kept.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from diffpolicy.diffusion.samplers.table import StepTable
from diffpolicy.interop import onnx_modules as modules
from diffpolicy.interop.onnx_file import difference, exported
from diffpolicy.interop.onnx_metadata import described, metadata
from diffpolicy.interop.onnx_parts import PARTS, part_of
from diffpolicy.policy.diffusion import DiffusionPolicy
from diffpolicy.policy.sampler_choices import AUTO
from diffpolicy.system.files import staging, write_bytes
from diffpolicy.system.tables import Choice

OPSETS = (17, 20)
RESERVED = frozenset({"noise", "vector", "tokens", "actions", "plan", "is_finite"})
MAX_ROWS = 200  # of the whole loop, in which each row is a copy of the network's operations


def export_onnx(
    policy: DiffusionPolicy,
    folder: str | Path,
    sampler: Choice = AUTO,
    steps: int | None = None,
    box: tuple[Sequence[float], Sequence[float]] | None = None,
    parts: Sequence[str] = PARTS,
    opset: int = OPSETS[0],
) -> dict[str, float]:
    """Write ONNX files into a new folder; returns the largest difference from torch of each: {part: difference}.

    Args:
        sampler, steps: of the whole loop, as for `DiffusionPolicy.sampler`.
        box: lowest and highest actions in physical units, which every estimate and the plan are clipped to.
        parts: which files to write.
        opset: version of ONNX's operators, 17 to 20.

    Raises:
        FileExistsError: the folder exists.
        ImportError: onnx or onnxruntime is not installed.
        ValueError: the policy or the sampler cannot be exported, or a file does not compute the same.
    """
    folder = Path(folder).absolute()
    policy.check_fitted()
    _check(policy, parts, opset)
    chosen = policy.sampling(sampler, steps)
    table, limits = _table(chosen, parts), None if box is None else _box(policy, *box)
    if folder.exists():
        raise FileExistsError(f"export_onnx: {folder} exists already; choose another folder or remove it first")
    told = None if box is None else {"low": list(box[0]), "high": list(box[1])}
    sampled, found = described(policy, table, chosen.settings), dict[str, float]()
    with staging(folder) as unfinished, torch.no_grad():
        unfinished.mkdir()
        for name in parts:
            part = part_of(policy, name, table, limits)
            data = exported(part, opset, metadata(policy, name, opset, sampled, told))
            found[name] = difference(part, data, policy, f"export_onnx: {name}.onnx")
            write_bytes(unfinished / f"{name}.onnx", data)
    return found


def _check(policy: DiffusionPolicy, parts: Sequence[str], opset: int) -> None:
    if not parts or not set(parts) <= set(PARTS):
        raise ValueError(f"export_onnx: parts {list(parts)} must be some of {', '.join(PARTS)}")
    if not OPSETS[0] <= opset <= OPSETS[1]:
        raise ValueError(f"export_onnx: opset {opset} must be between {OPSETS[0]} and {OPSETS[1]}")
    if taken := sorted(RESERVED & set(policy.config.observations)):
        raise ValueError(
            f"export_onnx: observations {', '.join(taken)} have names of other inputs or outputs of the files; "
            f"expected none of {', '.join(sorted(RESERVED))}"
        )
    dtype = next(policy.network.parameters()).dtype
    if dtype != torch.float32:
        raise ValueError(f"export_onnx: the policy is in {dtype}, expected torch.float32; call policy.float() first")
    if policy.config.diffusion.name == "mixture_density":
        raise ValueError("export_onnx: a mixture_density draws in float64, whose error function onnxruntime lacks")
    if getattr(policy.config.encoder, "precision", "float32") != "float32":
        raise ValueError(
            f"export_onnx: the encoder {policy.config.encoder.name} computes in {policy.config.encoder.precision}, "
            "which onnxruntime does not on a CPU; train with encoder.precision=float32"
        )


def _table(chosen: Any, parts: Sequence[str]) -> StepTable:
    table, name = chosen.sampler, chosen.settings.name
    if chosen.guide is not None:
        raise ValueError(f"export_onnx: sampler {name} has guidance, which is not exported; leave sampler.guidance out")
    if not isinstance(table, StepTable) or not all(row.is_uniform for row in table.rows):
        raise ValueError(
            f"export_onnx: sampler {name} is no table of one number for each coefficient and row; use ddim or ddpm"
        )
    if "step" in parts and (table.correlation or any(row.has_spread for row in table.rows)):
        told = "learned variance" if table.spread is not None else f"noise of correlation {table.correlation}"
        raise ValueError(
            f"export_onnx: step.onnx takes white noise of the row's size, and sampler {name} has {told}; give "
            "parts=[encoder,policy]"
        )
    if "policy" in parts and len(table) > MAX_ROWS:
        raise ValueError(
            f"export_onnx: {len(table)} evaluations are too many for one file, at most {MAX_ROWS}; use fewer "
            "sampler.steps, or parts=[encoder,step] with a loop of your own"
        )
    return table


def _box(policy: DiffusionPolicy, low: Sequence[float], high: Sequence[float]) -> modules.Box:
    dim = policy.config.action_dim
    if len(low) != dim or len(high) != dim:
        raise ValueError(f"export_onnx: box has {len(low)} and {len(high)} limits, expected {dim}, one for each action")
    return modules.Box(low, high)
