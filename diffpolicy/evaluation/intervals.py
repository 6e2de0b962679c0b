"""95 % intervals: bootstrap for means, Wilson for rates."""

import math
from collections.abc import Sequence

import numpy as np


def bootstrap_interval(values: Sequence[float], resamples: int = 10_000) -> tuple[float, float]:
    """Percentile bootstrap of the mean (Efron 1979). Seeded, so the same values give the same interval."""
    if len(values) == 0:
        raise ValueError("interval: no values")
    data = np.asarray(values, dtype=np.float64)
    index = np.random.default_rng(0).integers(len(data), size=(resamples, len(data)))
    low, high = np.quantile(data[index].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """Wilson score interval of a rate (Wilson 1927)."""
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f"interval: {successes} successes in {trials} trials")
    z = 1.959963984540054
    rate = successes / trials
    center = rate + z**2 / (2 * trials)
    radius = z * math.sqrt(rate * (1 - rate) / trials + (z / (2 * trials)) ** 2)
    scale = 1 + z**2 / trials
    return max(0.0, (center - radius) / scale), min(1.0, (center + radius) / scale)
