"""The reverse loop that all sampler tables share: denoise, project, take the row's linear step.

The last row returns the last projected estimate unchanged. The loop therefore returns exactly what `project` returned.
It has no look-ups, no branches on data and no host synchronisation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffpolicy.diffusion.correlation import correlated, whitened
from diffpolicy.diffusion.samplers.table import Row, StepTable


class Estimate(NamedTuple):
    """What a denoiser returns for a row whose noise the network scales (`Row.has_spread`).

    Attributes:
        clean: the clean estimate, like x.
        fraction: of the row's `spread`, like x.
    """

    clean: Tensor
    fraction: Tensor


Denoise = Callable[[Tensor, Row], Any]
"""(x, row) -> clean estimate, both [batch, horizon, action]; `Estimate` for a row that has a spread."""

Project = Callable[[Tensor, Row, int], Tensor]
"""(clean, row, step) -> the clean estimate that the step uses, same shape; must not work in place.

`step` counts the rows of the table from 0.
"""


@dataclass(frozen=True)
class Denoised:
    """The result of the reverse loop.

    Attributes:
        clean: [batch, horizon, action], the last projected estimate.
        is_finite: [batch] bool, whether every estimate was finite before the projection, which could hide NaN or inf.
    """

    clean: Tensor
    is_finite: Tensor


def reverse(denoise: Denoise, table: StepTable, noise: Tensor, project: Project) -> Denoised:
    """Sample clean trajectories from noise.

    Args:
        denoise: returns the clean estimate of x at the row's level.
        table: the sampler.
        noise: standard normal [rows + 1, batch, horizon, action]; the first draw is the start. The loop gives it the
            correlation of the table.
        project: called on every clean estimate; its output is what the step uses.

    Raises:
        ValueError: the number of draws is not rows + 1.
    """
    if len(noise) != len(table) + 1:
        raise ValueError(f"reverse: noise has {len(noise)} draws, expected {len(table) + 1} (rows + 1)")
    draws = correlated(noise, table.correlation).unbind(0)
    rows = [row.like(noise) for row in table.rows]
    x = (rows[0].sigma if table.start is None else table.start) * draws[0]
    estimates: list[Tensor] = []
    past: list[Tensor] = []
    for step, row in enumerate(rows):
        found, draw = denoise(x, row), draws[step + 1]
        if row.has_spread:
            found, draw = found.clean, (row.spread * found.fraction).exp() * draw
        estimates.append(found)
        clean = project(estimates[-1], row, step)
        advance = _advance if row.is_uniform else _advance_waypoints
        x = advance(row, x, clean, estimates[-1], past, draw)
        if row.c:
            past = [clean, *past[: len(row.c) - 1]]
    return Denoised(x, all_finite(estimates))


def warm_noise(noise: Tensor, table: StepTable, clean: Tensor) -> Tensor:
    """The draws [rows + 1, batch, horizon, action] with which `reverse` starts from alpha * clean + sigma * noise[0].

    Alpha and sigma are those of the first row (SDEdit, Meng et al. 2022, algorithm 1). The other draws are unchanged.

    Args:
        clean: trajectories to start from, [batch, horizon, action].

    Raises:
        ValueError: the table starts without noise.
    """
    row = table.rows[0].like(noise)
    start = row.sigma if table.start is None else table.start
    if table.start == 0.0:
        raise ValueError("sampler: it starts without noise, so it cannot start from a last plan; leave warm_start out")
    shift = whitened(row.alpha / start * clean, table.correlation)
    return torch.cat([noise[:1] + shift, noise[1:]])


def _advance(row: Row, x: Tensor, clean: Tensor, raw: Tensor, past: Sequence[Tensor], draw: Tensor) -> Tensor:
    """The row's linear step; terms whose coefficient is 0 cost nothing."""
    x = clean * row.b if row.a == 0.0 else (clean * row.b).add_(x, alpha=row.a)
    if row.raw != 0.0:
        x.add_(raw, alpha=row.raw)
    for coefficient, earlier in zip(row.c, past, strict=False):
        x.add_(earlier, alpha=coefficient)
    return x if row.s == 0.0 else x.add_(draw, alpha=row.s)


def _advance_waypoints(row: Row, x: Tensor, clean: Tensor, raw: Tensor, past: Sequence[Tensor], draw: Tensor) -> Tensor:
    """The same, with coefficients [horizon, 1]: one per waypoint."""
    x = row.b * clean + row.raw * raw + row.a * x + row.s * draw
    for coefficient, earlier in zip(row.c, past, strict=False):
        x = x + coefficient * earlier
    return x


def all_finite(estimates: Sequence[Tensor]) -> Tensor:
    """Whether all estimates [batch, horizon, action] are finite, for each row of the batch: bool [batch]."""
    return torch.stack(list(estimates), dim=1).isfinite().flatten(1).all(1)
