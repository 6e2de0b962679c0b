"""A survey of the columns of a data set, as they are stored: limits, quantiles, and what float32 makes of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

INNER = 0.01, 0.99  # quantiles
SAMPLE_ROWS = 200_000  # quantiles are those of at most about twice as many rows, evenly spread
FAR = 10.0  # times the range between the quantiles
RARE = 1e-3  # share of the rows


@dataclass(frozen=True)
class Column:
    """What one column of an array holds.

    Attributes:
        name: such as "state[2]", of the array flattened to [n_steps, columns].
        low, high: its limits.
        inner_low, inner_high: its 1 % and 99 % quantiles.
        rounding: the largest error of its values in float32.
        outlier: the row of the value furthest from the others, or None if none is far from them.
    """

    name: str
    low: float
    high: float
    inner_low: float
    inner_high: float
    rounding: float
    outlier: int | None


def merged(columns: Sequence[Column], starts: Sequence[int]) -> Column:
    """One column of several data sets, which begin at the rows `starts`, as if they were one.

    The quantiles are the outermost ones. The outlier is one of a data set that is far from all others, too.
    """
    inner_low, inner_high = min(one.inner_low for one in columns), max(one.inner_high for one in columns)
    found = [
        (max(one.high - inner_high, inner_low - one.low), start + one.outlier)
        for one, start in zip(columns, starts, strict=True)
        if one.outlier is not None
    ]
    distance, row = max(found, default=(0.0, 0))
    return Column(
        columns[0].name,
        low=min(one.low for one in columns),
        high=max(one.high for one in columns),
        inner_low=inner_low,
        inner_high=inner_high,
        rounding=max(one.rounding for one in columns),
        outlier=row if distance > FAR * (inner_high - inner_low) else None,
    )


def survey(names: Sequence[str], blocks: Iterable[np.ndarray], n_rows: int) -> list[Column]:
    """Survey the columns `names` of consecutive blocks [rows, columns], which have `n_rows` rows together."""
    every = max(1, n_rows // SAMPLE_ROWS)
    low, high = np.full(len(names), np.inf), np.full(len(names), -np.inf)
    low_row, high_row, rounding = (np.zeros(len(names)) for _ in range(3))
    sample, start = [], 0
    for block in blocks:
        values = block.astype(np.float64)
        lower, upper = values.min(0), values.max(0)
        low_row = np.where(lower < low, start + values.argmin(0), low_row)
        high_row = np.where(upper > high, start + values.argmax(0), high_row)
        low, high = np.minimum(low, lower), np.maximum(high, upper)
        rounding = np.maximum(rounding, np.abs(values.astype(np.float32) - values).max(0))
        sample.append(values[-start % every :: every])
        start += len(block)
    rows = np.concatenate(sample)
    inner_low, inner_high = np.quantile(rows, INNER, axis=0)
    above, below = high - inner_high, inner_low - low
    furthest = np.where(above >= below, high_row, low_row)
    width = inner_high - inner_low
    is_far = np.maximum(above, below) > FAR * width
    is_rare = (rows != inner_low).mean(0) <= max(RARE, 1.5 / len(rows))  # a value beside a constant
    is_outlier = is_far & ((width > 0) | is_rare)
    numbers = {"low": low, "high": high, "inner_low": inner_low, "inner_high": inner_high, "rounding": rounding}
    return [
        Column(
            name,
            **{key: float(values[i]) for key, values in numbers.items()},
            outlier=int(furthest[i]) if is_outlier[i] else None,
        )
        for i, name in enumerate(names)
    ]
