"""The noise schedules: discrete betas, the continuous VP process, the noise levels of VE, and the straight flow path.

Legend: beta, the variance that one training step adds; alpha_bar, alpha^2 of a variance-preserving schedule, which is
the cumulative product of 1 - beta; t, diffusion time in (0, 1]. All schedules raise ValueError if a number is out of
range.
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from diffpolicy.diffusion.schedule import (
    SIGMA_TIME_SCALE,
    STRAIGHT,
    VARIANCE_PRESERVING,
    Family,
    FloatArray,
    Levels,
    Schedule,
    variance_exploding,
)
from diffpolicy.system.schema import Range

TIME_SCALE = 1000.0  # a sinusoidal embedding is nearly constant over t in [0, 1]
MAX_BETA = 0.999
KARRAS_RHO = 7.0


@dataclass
class BetasConfig:
    """Settings of the schedules linear and scaled_linear."""

    name: str
    beta_start: float = 1e-4
    beta_end: float = 2e-2


@dataclass
class VpConfig:
    """Settings of the schedule vp: the rate at the beginning and at the end."""

    name: str = "vp"
    beta_min: float = 0.1
    beta_max: Annotated[float, Range(most=1_000_000)] = 20.0


@dataclass
class SigmasConfig:
    """Settings of the schedules ve and karras; sigma_data is the standard deviation of normalised actions."""

    name: str
    sigma_min: float = 0.002
    sigma_max: Annotated[float, Range(most=1_000_000)] = 80.0
    sigma_data: float = 0.5


def from_betas(betas: FloatArray) -> Schedule:
    """The variance-preserving schedule with these betas [levels] (Ho et al. 2020, eq. 4); time is the index."""
    alpha_bar = np.cumprod(1.0 - betas)
    return _variance_preserving(np.sqrt(alpha_bar), np.sqrt(1.0 - alpha_bar), np.arange(len(betas), dtype=np.float64))


def linear(num_levels: int, beta_start: float = 1e-4, beta_end: float = 2e-2) -> Schedule:
    """Evenly spaced betas (Ho et al. 2020, section 4); the defaults are meant for 1000 levels."""
    _check(num_levels, beta_start, beta_end)
    return from_betas(_evenly(beta_start, beta_end, num_levels))


def scaled_linear(num_levels: int, beta_start: float = 1e-4, beta_end: float = 2e-2) -> Schedule:
    """Betas whose square roots are evenly spaced (Rombach et al. 2022, latent diffusion)."""
    _check(num_levels, beta_start, beta_end)
    return from_betas(_evenly(beta_start**0.5, beta_end**0.5, num_levels) ** 2)


def cosine(num_levels: int) -> Schedule:
    """Squared-cosine alpha_bar with betas capped at 0.999 (Nichol & Dhariwal 2021, eq. 17)."""
    return _from_alpha_bar(np.cos((_grid(num_levels) + 0.008) / 1.008 * np.pi / 2) ** 2)


def sigmoid(num_levels: int, reach: float = 3.0) -> Schedule:
    """alpha_bar follows a sigmoid from -reach to reach, with betas capped at 0.999 (Jabri et al. 2023, algorithm 1)."""
    falling = 1 / (1 + np.exp(reach * (2 * _grid(num_levels) - 1)))
    return _from_alpha_bar((falling - falling[-1]) / (falling[0] - falling[-1]))


def zero_terminal_snr(schedule: Schedule) -> Schedule:
    """Shift and scale alpha so that the last level holds no signal (Lin et al. 2024, algorithm 1).

    Raises:
        ValueError: the schedule is not variance preserving.
    """
    if schedule.family != VARIANCE_PRESERVING:
        raise ValueError("schedule: zero_terminal_snr rescales variance-preserving schedules only")
    alpha = schedule.levels.alpha
    alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
    return _variance_preserving(alpha, np.sqrt(1.0 - alpha**2), schedule.levels.time)


def vp(num_levels: int, beta_min: float = 0.1, beta_max: float = 20.0) -> Schedule:
    """The VP process whose rate grows linearly in t, at t = i / num_levels (Song et al. 2021b, eq. 32 and 33)."""
    if not 0.0 <= beta_min <= beta_max < np.inf:
        raise ValueError(f"schedule: beta_min {beta_min} and beta_max {beta_max} must rise from 0")
    t = _grid(num_levels)[1:]
    exponent = 0.5 * t**2 * (beta_max - beta_min) + t * beta_min  # the integral of the rate
    return _variance_preserving(np.exp(-0.5 * exponent), np.sqrt(-np.expm1(-exponent)), TIME_SCALE * t)


def ve(num_levels: int, sigma_min: float, sigma_max: float, sigma_data: float) -> Schedule:
    """Noise levels in a geometric progression (Song et al. 2021b, eq. 31)."""
    _check_sigmas(num_levels, sigma_min, sigma_max)
    return _from_sigmas(np.geomspace(sigma_min, sigma_max, num_levels), variance_exploding(sigma_data))


def karras(num_levels: int, sigma_min: float, sigma_max: float, sigma_data: float) -> Schedule:
    """Noise levels evenly spaced in sigma^(1/7) (Karras et al. 2022, eq. 5)."""
    _check_sigmas(num_levels, sigma_min, sigma_max)
    return _from_sigmas(karras_spaced(sigma_min, sigma_max, num_levels), variance_exploding(sigma_data))


def flow(num_levels: int) -> Schedule:
    """The straight path alpha = 1 - t, sigma = t of flow matching (Lipman et al. 2023; Liu et al. 2023)."""
    t = _grid(num_levels)[1:]
    return Schedule(Levels(1.0 - t, t, TIME_SCALE * t, np.ones_like(t)), STRAIGHT)


def karras_spaced(first: float, last: float, count: int) -> FloatArray:
    """`count` numbers from first to last, evenly spaced in the 7th root."""
    return _evenly(first ** (1 / KARRAS_RHO), last ** (1 / KARRAS_RHO), count) ** KARRAS_RHO


def _evenly(first: float, last: float, count: int) -> FloatArray:
    return np.linspace(first, last, count, dtype=np.float64)


def _from_alpha_bar(alpha_bar: FloatArray) -> Schedule:
    """The schedule with this alpha_bar [levels + 1], whose first entry is the one before the first level."""
    return from_betas(np.minimum(1.0 - alpha_bar[1:] / alpha_bar[:-1], MAX_BETA))


def from_nothing(input_scale: float, *noises: float) -> Schedule:
    """The last level is pure noise; the levels below it show the whole trajectory with these little `noises` on it.

    Args:
        input_scale: of the last level; with 0 the network sees zeros there.
    """
    ones = np.ones(len(noises))
    sigma = np.append(noises, 1.0)
    return Schedule(Levels(np.append(ones, 0.0), sigma, TIME_SCALE * sigma, np.append(ones, input_scale)))


def _variance_preserving(alpha: FloatArray, sigma: FloatArray, time: FloatArray) -> Schedule:
    return Schedule(Levels(alpha, sigma, time, np.ones_like(time)), VARIANCE_PRESERVING)


def _from_sigmas(sigma: FloatArray, family: Family) -> Schedule:
    alpha = np.ones_like(sigma)
    return Schedule(Levels(alpha, sigma, SIGMA_TIME_SCALE * np.log(sigma), family.input_scale(alpha, sigma)), family)


def _grid(num_levels: int) -> FloatArray:
    """num_levels + 1 evenly spaced numbers from 0 to 1."""
    if num_levels < 1:
        raise ValueError(f"schedule: num_levels {num_levels} must be at least 1")
    return np.arange(num_levels + 1) / num_levels


def _check(num_levels: int, beta_start: float, beta_end: float) -> None:
    _grid(num_levels)
    if not 0.0 < beta_start <= beta_end < 1.0:
        raise ValueError(f"schedule: betas {beta_start} to {beta_end} must rise within (0, 1)")


def _check_sigmas(num_levels: int, sigma_min: float, sigma_max: float) -> None:
    if num_levels < 2:
        raise ValueError(f"schedule: num_levels {num_levels} must be at least 2")
    if not 0.0 < sigma_min < sigma_max < np.inf:
        raise ValueError(f"schedule: sigma_min {sigma_min} and sigma_max {sigma_max} must rise from above 0")
