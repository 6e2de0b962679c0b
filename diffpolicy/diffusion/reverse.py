"""The one reverse loop: denoise, project, take the row's linear step.

The projected clean estimate is all that a row adds to, and the last row returns it unchanged: what leaves the loop
is what `project` returned. There is no look-up, branch on data or host synchronisation in the loop.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffpolicy.diffusion.samplers.table import Row, StepTable

Denoise = Callable[[Tensor, Row], Tensor]
"""(x, row) -> clean estimate; both [batch, horizon, action]."""

Project = Callable[[Tensor, Row, int], Tensor]
"""(clean, row, step) -> the clean estimate that the step goes on with, same shape; not in place.

`step` counts the rows of the table from 0.
"""


@dataclass(frozen=True)
class Denoised:
    """What leaves the loop.

    Attributes:
        clean: [batch, horizon, action], the last projected estimate.
        is_finite: [batch] bool, whether every estimate was finite before it was projected: a projection could hide
            what is not.
    """

    clean: Tensor
    is_finite: Tensor


def reverse(denoise: Denoise, table: StepTable, noise: Tensor, project: Project) -> Denoised:
    """From noise to a clean trajectory.

    Args:
        denoise: clean estimate of x at the row's level.
        table: the sampler.
        noise: standard normal [rows + 1, batch, horizon, action]; the first is the start.
        project: called on every clean estimate; its output is what the step uses.
    """
    if len(noise) != len(table) + 1:
        raise ValueError(f"reverse: noise has {len(noise)} draws, expected {len(table) + 1} (rows + 1)")
    draws = noise.unbind(0)
    rows = [row.like(noise) for row in table.rows]
    x = rows[0].sigma * draws[0]
    estimates: list[Tensor] = []
    past: list[Tensor] = []
    for step, row in enumerate(rows):
        estimates.append(denoise(x, row))
        clean = project(estimates[-1], row, step)
        advance = _advance if row.is_uniform else _advance_waypoints
        x = advance(row, x, clean, past, draws[step + 1])
        if row.c:
            past = [clean, *past[: len(row.c) - 1]]
    return Denoised(x, all_finite(estimates))


def _advance(row: Row, x: Tensor, clean: Tensor, past: Sequence[Tensor], draw: Tensor) -> Tensor:
    """The row's linear step; terms whose coefficient is 0 cost nothing."""
    x = clean * row.b if row.a == 0.0 else (clean * row.b).add_(x, alpha=row.a)
    for coefficient, earlier in zip(row.c, past, strict=False):
        x.add_(earlier, alpha=coefficient)
    return x if row.s == 0.0 else x.add_(draw, alpha=row.s)


def _advance_waypoints(row: Row, x: Tensor, clean: Tensor, past: Sequence[Tensor], draw: Tensor) -> Tensor:
    """The same with coefficients [horizon, 1] of each waypoint's own."""
    x = row.b * clean + row.a * x + row.s * draw
    for coefficient, earlier in zip(row.c, past, strict=False):
        x = x + coefficient * earlier
    return x


def all_finite(estimates: Sequence[Tensor]) -> Tensor:
    """[batch] bool, whether every estimate [batch, horizon, action] of a row of the batch is finite."""
    return torch.stack(list(estimates), dim=1).isfinite().flatten(1).all(1)
