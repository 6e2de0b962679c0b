"""A sampler is a table: one row of coefficients per evaluation of the network.

    x = a * x + b * clean + sum_j c[j] * clean[-j - 1] + s * noise

Legend: clean, the projected clean estimate at the row's level; clean[-j - 1], the one j + 1 rows earlier.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from diffpolicy.diffusion.schedule import FloatArray, Levels


@dataclass(frozen=True)
class Row:
    """The level that a step starts from, and the coefficients that lead to the next.

    Attributes:
        stop: the time of the level that the step leads to, for a network that learned to see it; else None.
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
    """The levels by themselves, to ask a denoiser there: rows that return the clean estimate."""
    zero = np.zeros(len(levels))
    return StepTable(levels, a=zero, b=zero + 1.0, s=zero).rows


@dataclass(frozen=True)
class StepTable:
    """Coefficients [rows], or [rows, past] for c, at the levels `now`.

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
        now = self.now
        past = np.zeros((len(now), 0)) if self.c is None else self.c
        columns = (now.alpha, now.sigma, now.time, now.input_scale, self.a, self.b, self.s)
        numbers = zip(*(column.tolist() for column in columns), past.tolist(), strict=True)
        return tuple(Row(*scalars, c=tuple(c)) for *scalars, c in numbers)
