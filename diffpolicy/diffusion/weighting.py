"""Loss weights of the noise levels, and the distributions from which training draws levels.

A weighting takes the levels and `out`, the factor of the network's output in the clean estimate. It returns the weights
[levels] of the squared error of the output. A weight w on the clean estimate's error is w * out^2 on the output's.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from diffpolicy.diffusion.schedule import FloatArray, Levels

Weighting = Callable[[Levels, FloatArray], FloatArray]
LevelDistribution = Callable[[Levels], FloatArray]
"""Levels -> the probability of each one [levels], which sum to 1."""


@dataclass
class MinSnrConfig:
    """Settings of `min_snr`."""

    name: str = "min_snr"
    gamma: float = 5.0


@dataclass
class P2Config:
    """Settings of `p2`."""

    name: str = "p2"
    gamma: float = 1.0
    k: float = 1.0


@dataclass
class LogNormalConfig:
    """Settings of `log_normal`, as in Karras et al. 2022."""

    name: str = "log_normal"
    mean: float = -1.2
    std: float = 1.2


@dataclass
class LogitNormalConfig:
    """Settings of `log_normal` as the logit-normal distribution of Esser et al. 2024."""

    name: str = "logit_normal"
    mean: float = 0.0
    std: float = 1.0


def simple(levels: Levels, out: FloatArray) -> FloatArray:
    """Weight 1 on the network's output (Ho et al. 2020, eq. 14)."""
    return np.ones_like(out)


def elbo(levels: Levels, out: FloatArray) -> FloatArray:
    """The weights of the evidence lower bound: half the drop in snr at each level (Kingma et al. 2021, eq. 13).

    The first level has the weight of the reconstruction term, for a decoder with variance sigma^2 / alpha^2.
    """
    return elbo_weights(levels) * out**2


def elbo_weights(levels: Levels) -> FloatArray:
    """The weights [levels] of the clean estimate's squared error in the evidence lower bound."""
    return 0.5 * np.append(levels.snr[0], levels.snr[:-1] - levels.snr[1:])


def snr(levels: Levels, out: FloatArray) -> FloatArray:
    """Weight 1 on the noise, which is sigma^2 on the score (Song & Ermon 2019, eq. 6)."""
    return levels.snr * out**2


def min_snr(gamma: float = 5.0) -> Weighting:
    """Weight min(snr, gamma) on the clean estimate (Hang et al. 2023, eq. 6)."""
    return lambda levels, out: np.minimum(levels.snr, gamma) * out**2


def p2(gamma: float = 1.0, k: float = 1.0) -> Weighting:
    """Weight 1 / (k + snr)^gamma on the noise (Choi et al. 2022, eq. 8)."""
    return lambda levels, out: levels.snr / (k + levels.snr) ** gamma * out**2


def edm(sigma_data: float) -> Weighting:
    """Weight snr + 1 / sigma_data^2 on the clean estimate, which is 1 on EDM's output (Karras et al. 2022, table 1)."""
    return lambda levels, out: (levels.snr + sigma_data**-2) * out**2


def uniform(levels: Levels) -> FloatArray:
    """Every level with the same probability."""
    return np.full(len(levels), 1.0 / len(levels))


def log_normal(mean: float, std: float) -> LevelDistribution:
    """Normal distribution of log(sigma / alpha) (Karras et al. 2022, table 1, with mean -1.2 and std 1.2).

    On the straight path of flow matching, where logit(t) = log(sigma / alpha), this is the logit-normal distribution of
    Esser et al. 2024, section 3.1 (with mean 0 and std 1).

    Raises:
        ValueError: std is not positive and finite.
    """
    if not 0.0 < std < np.inf:
        raise ValueError(f"level distribution: std {std} must be above 0")

    def probability(levels: Levels) -> FloatArray:
        # A level has the probability mass between the midpoints to its neighbours.
        position = (-levels.lambdas - mean) / std
        edges = np.concatenate([[-np.inf], (position[1:] + position[:-1]) / 2.0, [np.inf]])
        return np.diff([_normal_cdf(edge) for edge in edges])

    return probability


def _normal_cdf(z: float) -> float:
    return 0.5 * (1.0 + math.erf(z / math.sqrt(2.0)))
