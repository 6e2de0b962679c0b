"""Checks whether a network rounds a row the same way at every position in a batch.

If it does, an episode is bit-equal alone and among others.

A matrix product is computed in tiles. The tile that a row falls into, and so the order of its sums, depends on its
position, the batch size, the layer's sizes, the number of threads and the processor's instructions. Rows are
independent in batches of a multiple of 8 with AVX2, and of a multiple of 16 with AVX-512 (measured with 1 to 6
threads). They never are in a layer with fewer than 11 outputs whose inputs are not a multiple of 16, but the U-Nets
have none. That is why the check runs the policy itself.
"""

import warnings
import weakref
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from diffpolicy.policy.protocol import Policy

STEP = 16  # rows are independent at multiples of this, on all measured kernels
_KNOWN: weakref.WeakKeyDictionary[Policy, dict[tuple[int, int], bool]] = weakref.WeakKeyDictionary()


def warn_of_dependent_rows(policy: Policy, batch: int) -> None:
    """Warn if rows of `policy` are dependent, once per process for each policy, batch and number of threads."""
    threads = torch.get_num_threads()
    if (batch, threads) in _KNOWN.get(policy, {}) or has_independent_rows(policy, batch):
        return
    better = STEP * -(-batch // STEP)
    helps = better != batch and has_independent_rows(policy, better)
    warnings.warn(
        f"inference_batch {batch} with {threads} thread{'s' if threads > 1 else ''}: on this processor a plan's "
        "rounding depends on its place in the batch, so an episode run alone is not bit-equal to the same one among "
        "others; " + (f"choose {better}" if helps else "choose fewer threads (torch.set_num_threads) or another batch"),
        RuntimeWarning,
        stacklevel=3,
    )


def has_independent_rows(policy: Policy, batch: int) -> bool:
    """`rows_are_independent` for the policy's plans from one evaluation of the network; tested once per process."""
    known = _KNOWN.setdefault(policy, {})
    key = (batch, torch.get_num_threads())
    if key not in known:
        specs, sampler = policy.config.observations, policy.sampler("auto", 1)
        generator = torch.Generator().manual_seed(0)

        def plans(*seen: Tensor) -> Tensor:
            generators = [torch.Generator().manual_seed(0) for _ in range(batch)]
            return policy.predict_action_chunk(dict(zip(specs, seen, strict=True)), generators, sampler).plan

        steps = policy.config.window.n_obs_steps
        row = [_drawn((steps, *spec.shape), spec.dtype, generator) for spec in specs.values()]
        known[key] = rows_are_independent(plans, row, batch)
    return known[key]


def rows_are_independent(function: Callable[..., Tensor], row: Sequence[Tensor], batch: int) -> bool:
    """Whether `function` gives a row the same output, bit by bit, at every position and beside any neighbours.

    Costs three calls of `function`.

    Args:
        function: a function of tensors [batch, ...] that returns a tensor [batch, ...].
        row: its arguments for one row, each without the batch dimension.
    """
    expected = function(*(one.expand(batch, *one.shape).clone() for one in row))
    if not bool((expected == expected[:1]).all()):
        return False
    generator = torch.Generator().manual_seed(1)
    for first in (0, 1):  # put the row at even positions, then at odd ones
        mixed = [_drawn((batch, *one.shape), one.dtype, generator) for one in row]
        for tensor, one in zip(mixed, row, strict=True):
            tensor[first::2] = one
        if not torch.equal(function(*mixed)[first::2], expected[first::2]):
            return False
    return True


def _drawn(shape: Sequence[int], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    if dtype == torch.uint8:
        return torch.randint(256, tuple(shape), generator=generator, dtype=dtype)
    return torch.randn(*shape, generator=generator, dtype=dtype)
