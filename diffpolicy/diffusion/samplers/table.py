"""Samplers as tables: one row of coefficients per evaluation of the network.

    x = a * x + b * clean + sum_j c[j] * clean[-j - 1] + raw * raw_clean + s * exp(spread * fraction) * noise

Legend: clean, the projected clean estimate at the row's level; clean[-j - 1], the estimate j + 1 rows earlier;
raw_clean, the estimate before the projection, which most samplers do not use; noise, fresh standard normal noise;
fraction, which a network of learned variance gives besides its estimate.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffpolicy.diffusion.schedule import FloatArray, Levels

Number = Any
"""A float; or, where waypoints have levels of their own, a tensor [horizon, 1] (of times, [horizon])."""


@dataclass(frozen=True)
class Row:
    """The level that a step starts from, and the coefficients of the step.

    Attributes:
        alpha, sigma, time, input_scale: the level; see diffusion/schedule.py.
        a, b, s, c, raw, spread: the coefficients; see the formula at the top of this file.
        stop: the time of the level at the end of the step, for a network that was trained with it; else None.
    """

    alpha: Number
    sigma: Number
    time: Number
    input_scale: Number
    a: Number
    b: Number
    s: Number
    c: tuple[Number, ...] = ()
    stop: Number | None = None
    raw: Number = 0.0
    spread: Number = 0.0

    @property
    def has_spread(self) -> bool:
        """Whether the network says how much noise the step adds, so that the denoiser returns an `Estimate`."""
        return isinstance(self.spread, Tensor) or self.spread != 0.0

    @property
    def is_uniform(self) -> bool:
        """Whether all waypoints are at one level, so that its numbers are floats."""
        return not isinstance(self.a, Tensor)

    def like(self, x: Tensor) -> "Row":
        """With its tensors on the device and of the type of `x`; the same row where it has none."""
        if self.is_uniform:
            return self
        cast = {name: value.to(x) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **cast, c=tuple(one.to(x) for one in self.c))


def rows_at(levels: Levels) -> tuple[Row, ...]:
    """Rows for calling a denoiser at these levels without sampling; each row returns the clean estimate."""
    zero = np.zeros(len(levels))
    return StepTable(levels, a=zero, b=zero + 1.0, s=zero).rows


@dataclass(frozen=True)
class StepTable:
    """The coefficients of a sampler at the levels `now`: a, b, s, raw and spread [rows], and c [rows, past].

    Where waypoints have levels of their own, all of these have [horizon] as a further, last dimension. The loop starts
    from noise of standard deviation `start`, by default the sigma of the first level. `correlation` is that of noise
    of neighbouring waypoints; see diffusion/correlation.py. `stop` has the times at which the steps end, for networks
    that see them.

    Raises:
        ValueError: a column does not have one finite number per level, or the last row does not return the clean
            estimate: b is 1, and a, c, raw and s are 0.
    """

    now: Levels
    a: FloatArray
    b: FloatArray
    s: FloatArray
    c: FloatArray | None = None
    raw: FloatArray | None = None
    start: float | None = None
    stop: FloatArray | None = None
    spread: FloatArray | None = None
    correlation: float = 0.0

    def __post_init__(self) -> None:
        columns = {name: getattr(self, name) for name in ("a", "b", "s", "c", "raw", "stop", "spread")}
        for name, column in columns.items():
            if column is None:
                continue
            if len(column) != len(self.now) or not np.isfinite(column).all():
                raise ValueError(
                    f"sampler: {name} is {column.tolist()}, expected a finite number for each of {len(self.now)} levels"
                )
        past: list[FloatArray] = [] if self.c is None else list(self.c[-1])
        past += [] if self.raw is None else [self.raw[-1]]
        found = [np.asarray(one) for one in (self.a[-1], self.b[-1], *past, self.s[-1])]
        expected = [0.0, 1.0, *(0.0 for _ in past), 0.0]
        if not all(np.allclose(*pair, rtol=0.0, atol=1e-12) for pair in zip(found, expected, strict=True)):
            numbers = tuple(one.tolist() for one in found)
            raise ValueError(f"sampler: last row (a, b, c..., s) is {numbers}, expected (0, 1, 0..., 0)")

    def __len__(self) -> int:
        return len(self.now)

    def with_stops(self, clean_time: float) -> "StepTable":
        """With the times at which the steps end: that of the next row, or `clean_time` where x does not count (a = 0).

        Args:
            clean_time: the time that stands for the clean trajectory, that of the least trained level.
        """
        return replace(self, stop=np.where(self.a == 0.0, clean_time, np.append(self.now.time[1:], clean_time)))

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """The rows as Python floats, in the order in which they run."""
        now = self.now
        past = np.zeros((len(now), 0)) if self.c is None else self.c
        raw = np.zeros_like(self.a) if self.raw is None else self.raw
        columns = (now.alpha, now.sigma, now.time, now.input_scale, self.a, self.b, self.s)
        numbers = zip(*(column.tolist() for column in columns), past.tolist(), raw.tolist(), strict=True)
        rows = [Row(*map(_number, scalars), c=tuple(map(_number, c)), raw=_number(raw)) for *scalars, c, raw in numbers]
        if self.stop is not None:
            rows = [replace(row, stop=stop) for row, stop in zip(rows, self.stop.tolist(), strict=True)]
        if self.spread is not None:
            rows = [replace(row, spread=_number(one)) for row, one in zip(rows, self.spread.tolist(), strict=True)]
        return tuple(row if row.is_uniform else replace(row, time=row.time[:, 0]) for row in rows)


def _number(value: float | Sequence[float]) -> Number:
    return value if isinstance(value, float) else torch.tensor(value, dtype=torch.float64)[:, None]
