"""Noise schedules: the signal and noise of each level, and how the network is told the level.

A noisy trajectory is ``x = alpha * clean + sigma * noise``. Legend:

    alpha        signal of a level
    sigma        noise of a level
    snr          signal-to-noise ratio alpha^2 / sigma^2
    lambda       half its logarithm, log(alpha / sigma), which falls as noise grows
    time         the network's input that encodes the level
    input_scale  factor on x before it enters the network

All values are float64 and are cast once, when they are applied to a tensor.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

MAX_TERMINAL_SNR = 0.0101
SIGMA_TIME_SCALE = 250.0  # c_noise of Karras et al. 2022, log(sigma) / 4, times 1000


@dataclass(frozen=True)
class Levels:
    """A sequence of noise levels; every field is [levels]."""

    alpha: FloatArray
    sigma: FloatArray
    time: FloatArray
    input_scale: FloatArray

    def __len__(self) -> int:
        return len(self.alpha)

    def __getitem__(self, index: npt.NDArray[np.intp] | slice) -> "Levels":
        return Levels(self.alpha[index], self.sigma[index], self.time[index], self.input_scale[index])

    @property
    def snr(self) -> FloatArray:
        """alpha^2 / sigma^2; infinite where there is no noise."""
        with np.errstate(divide="ignore"):
            return (self.alpha / self.sigma) ** 2

    @property
    def lambdas(self) -> FloatArray:
        """log(alpha / sigma), half the log-SNR; minus infinity where there is no signal."""
        with np.errstate(divide="ignore"):
            return np.log(self.alpha) - np.log(self.sigma)

    def followed_by_clean(self) -> "Levels":
        """The level after each of these: all but the first, then the clean level (alpha, sigma) = (1, 0)."""
        return Levels(
            np.append(self.alpha[1:], 1.0),
            np.append(self.sigma[1:], 0.0),
            np.append(self.time[1:], 0.0),
            np.append(self.input_scale[1:], 1.0),
        )


@dataclass(frozen=True)
class Family:
    """The curve in the (alpha, sigma) plane on which a schedule's levels lie.

    Attributes:
        level: lambda -> (alpha, sigma).
        input_scale: (alpha, sigma) -> input_scale.
        time: lambda -> time, if the network's time is known beyond the trained levels.
    """

    level: Callable[[FloatArray], tuple[FloatArray, FloatArray]]
    input_scale: Callable[[FloatArray, FloatArray], FloatArray] = lambda alpha, sigma: np.ones_like(sigma)
    time: Callable[[FloatArray], FloatArray] | None = None


VARIANCE_PRESERVING = Family(lambda lam: (1 / np.sqrt(1 + np.exp(-2 * lam)), 1 / np.sqrt(1 + np.exp(2 * lam))))
STRAIGHT = Family(lambda lam: (1 / (1 + np.exp(-lam)), 1 / (1 + np.exp(lam))))  # alpha + sigma = 1


def variance_exploding(sigma_data: float) -> Family:
    """The family with alpha = 1, for normalised actions of standard deviation `sigma_data`.

    input_scale gives the network's input unit variance (Karras et al. 2022, table 1, c_in).
    """
    return Family(
        level=lambda lam: (np.ones_like(lam), np.exp(-lam)),
        input_scale=lambda alpha, sigma: 1 / np.hypot(sigma_data * alpha, sigma),
        time=lambda lam: -SIGMA_TIME_SCALE * lam,
    )


@dataclass(frozen=True)
class Schedule:
    """The levels that a network is trained on, from the least noise to the most.

    Attributes:
        levels, family: the levels, and the curve on which they lie.
        correlation: that of the noise of neighbouring waypoints; see diffusion/correlation.py.
    """

    levels: Levels
    family: Family = VARIANCE_PRESERVING
    correlation: float = 0.0

    def check(self) -> None:
        """Check that the last level hides the clean trajectory: its alpha^2 / sigma^2 is at most 0.0101.

        Sampling starts from pure noise, which a network trained on other levels has never seen. `Denoising` calls this
        rather than the constructor, so that zero_terminal_snr can rescale the levels first.

        Raises:
            ValueError: the last level has more signal.
        """
        terminal_snr = self.levels.snr[-1]
        if not terminal_snr <= MAX_TERMINAL_SNR:
            raise ValueError(
                f"schedule: terminal signal-to-noise ratio {terminal_snr:.4g} must be at most {MAX_TERMINAL_SNR}: "
                "sampling would start from noise that training never showed; use more levels, a larger last beta "
                "or sigma, zero_terminal_snr, or the cosine schedule"
            )

    def __len__(self) -> int:
        return len(self.levels)

    def at(self, lambdas: FloatArray, beyond: bool = False) -> Levels:
        """Levels with these lambdas [n], exactly on the schedule's curve; the network's time is interpolated.

        Args:
            beyond: whether levels with more noise than the last one are allowed where the family knows their time.

        Raises:
            ValueError: a lambda lies outside the trained levels.
        """
        low, high = self.levels.lambdas[-1], self.levels.lambdas[0]
        if beyond and self.family.time:
            low = lambdas.min()
        rounding = 1e-9
        if not ((lambdas >= low - rounding) & (lambdas <= high + rounding)).all():
            raise ValueError(
                f"schedule: lambda {lambdas.min():.4g} to {lambdas.max():.4g} must lie within the trained levels' "
                f"{low:.4g} to {high:.4g}"
            )
        alpha, sigma = self.family.level(lambdas)
        # The angle arctan(sigma / alpha) increases with noise and is finite even where alpha is 0.
        known = np.arctan2(self.levels.sigma, self.levels.alpha)
        time = np.interp(np.arctan2(sigma, alpha), known, self.levels.time)
        if beyond and self.family.time:
            time = np.where(lambdas < self.levels.lambdas[-1], self.family.time(lambdas), time)
        return Levels(alpha, sigma, time, self.family.input_scale(alpha, sigma))


def check_steps(steps: int, most: int) -> None:
    """Raise ValueError unless 1 <= steps <= most."""
    if not 1 <= steps <= most:
        raise ValueError(f"sampler: steps {steps} must be between 1 and {most}, the trained levels")
