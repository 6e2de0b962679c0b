"""Samplers as tables: one row of coefficients per evaluation of the network.

    x = a * x + b * clean + sum_j c[j] * clean[-j - 1] + s * noise

Legend: clean, the projected clean estimate at the row's level; clean[-j - 1], the estimate j + 1 rows earlier; noise,
fresh standard normal noise.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from diffpolicy.diffusion.schedule import FloatArray, Levels


@dataclass(frozen=True)
class Row:
    """The level that a step starts from, and the coefficients of the step.

    Attributes:
        alpha, sigma, time, input_scale: the level; see diffusion/schedule.py.
        a, b, s, c: the coefficients; see the formula at the top of this file.
        stop: the time of the level at the end of the step, for a network that was trained with it; else None.
    """

    alpha: float
    sigma: float
    time: float
    input_scale: float
    a: float
    b: float
    s: float
    c: tuple[float, ...] = ()
    stop: float | None = None


def rows_at(levels: Levels) -> tuple[Row, ...]:
    """Rows for calling a denoiser at these levels without sampling; each row returns the clean estimate."""
    zero = np.zeros(len(levels))
    return StepTable(levels, a=zero, b=zero + 1.0, s=zero).rows


@dataclass(frozen=True)
class StepTable:
    """The coefficients of a sampler at the levels `now`: a, b and s [rows], and c [rows, past].

    Raises:
        ValueError: the last row does not return the clean estimate, (a, b, c, s) = (0, 1, 0, 0).
    """

    now: Levels
    a: FloatArray
    b: FloatArray
    s: FloatArray
    c: FloatArray | None = None

    def __post_init__(self) -> None:
        last = self.rows[-1]
        found = (last.a, last.b, *last.c, last.s)
        if not np.allclose(found, (0.0, 1.0, *(0.0 for _ in last.c), 0.0), rtol=0.0, atol=1e-12):
            raise ValueError(f"sampler: last row (a, b, c..., s) is {found}, expected (0, 1, 0..., 0)")

    def __len__(self) -> int:
        return len(self.now)

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """The rows as Python floats, in the order in which they run."""
        now = self.now
        past = np.zeros((len(now), 0)) if self.c is None else self.c
        columns = (now.alpha, now.sigma, now.time, now.input_scale, self.a, self.b, self.s)
        numbers = zip(*(column.tolist() for column in columns), past.tolist(), strict=True)
        return tuple(Row(*scalars, c=tuple(c)) for *scalars, c in numbers)
