"""Whether a row of a batch is rounded the same wherever it stands: then an episode is the same to the bit alone and
among others.

A matrix product is computed in tiles. The tile that a row falls into, and with it the order of its sums, depends on
its place, the batch size, the layer's sizes, the threads and the instructions of the processor. With AVX2 batches of a
multiple of 8 hold, with AVX-512 those of a multiple of 16 (measured with 1 to 6 threads); a layer of fewer than 11
outputs whose inputs are no multiple of 16 holds nowhere, but the U-Nets have none. So it is tried, with the network
itself.
"""

import warnings
import weakref
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from diffpolicy.networks.backbones.unet1d_unrolled import at_condition

STEP = 16  # a multiple of this holds on all kernels that were measured
TIME = 1.0
_KNOWN: weakref.WeakKeyDictionary[nn.Module, dict[tuple[int, ...], bool]] = weakref.WeakKeyDictionary()


def warn_of_dependent_rows(network: nn.Module, condition_dim: int, horizon: int, action_dim: int, batch: int) -> None:
    """Warn, once a process for each network, batch and number of threads, where `network` has dependent rows."""
    sizes, threads = (condition_dim, horizon, action_dim), torch.get_num_threads()
    if (batch, threads, *sizes) in _KNOWN.get(network, {}) or has_independent_rows(network, *sizes, batch):
        return
    better = STEP * -(-batch // STEP)
    helps = better != batch and has_independent_rows(network, *sizes, better)
    warnings.warn(
        f"inference_batch {batch} with {threads} thread{'s' if threads > 1 else ''}: on this processor a plan's "
        "rounding depends on its place in the batch, so an episode alone is not bit-equal to the same among others; "
        + (f"choose {better}" if helps else "choose fewer threads (torch.set_num_threads) or another batch"),
        RuntimeWarning,
        stacklevel=3,
    )


def has_independent_rows(network: nn.Module, condition_dim: int, horizon: int, action_dim: int, batch: int) -> bool:
    """`rows_are_independent` of a backbone at a fixed condition, as sampling calls it; tried once a process.

    Args:
        network: of x [batch, horizon, action_dim], the time and a condition [batch, condition_dim].
    """
    known = _KNOWN.setdefault(network, {})
    key = (batch, torch.get_num_threads(), condition_dim, horizon, action_dim)
    if key not in known:
        like = next(network.parameters())

        def function(x: Tensor, condition: Tensor) -> Tensor:
            return at_condition(network, condition, [TIME], horizon)(x, TIME)

        generator = torch.Generator().manual_seed(0)
        row = [torch.randn(shape, generator=generator).to(like) for shape in ((horizon, action_dim), (condition_dim,))]
        with torch.inference_mode():
            known[key] = rows_are_independent(function, row, batch)
    return known[key]


def rows_are_independent(function: Callable[..., Tensor], row: Sequence[Tensor], batch: int) -> bool:
    """Whether `function` gives one row the same output, to the bit, at every place and beside other neighbours.

    Costs three calls of `function`.

    Args:
        function: of tensors [batch, ...] to a tensor [batch, ...].
        row: its arguments for one row, each without the batch's dimension.
    """
    expected = function(*(one.expand(batch, *one.shape).clone() for one in row))
    if not bool((expected == expected[:1]).all()):
        return False
    generator = torch.Generator().manual_seed(1)
    for first in (0, 1):  # the row at the even places, then at the odd
        mixed = [torch.randn(batch, *one.shape, generator=generator).to(one) for one in row]
        for tensor, one in zip(mixed, row, strict=True):
            tensor[first::2] = one
        if not torch.equal(function(*mixed)[first::2], expected[first::2]):
            return False
    return True
