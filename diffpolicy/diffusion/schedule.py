"""Noise schedules: how much signal and noise each level holds, and what the network is told of it.

A noisy trajectory is ``x = alpha * clean + sigma * noise``. Legend:

    alpha        signal of a level
    sigma        noise of a level
    time         what the network's embedding sees of the level
    input_scale  factor on x before it enters the network
    beta         variance added by one training step
    alpha_bar    alpha ** 2 of a variance-preserving schedule, the running product of 1 - beta

Everything is float64 and is cast once, where it meets a tensor.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

MAX_TERMINAL_SNR = 0.0101


@dataclass(frozen=True)
class Levels:
    """Noise levels side by side; every field is [levels]."""

    alpha: FloatArray
    sigma: FloatArray
    time: FloatArray
    input_scale: FloatArray

    def __len__(self) -> int:
        return len(self.alpha)

    def __getitem__(self, index: npt.NDArray[np.intp]) -> "Levels":
        return Levels(self.alpha[index], self.sigma[index], self.time[index], self.input_scale[index])

    def followed_by_clean(self) -> "Levels":
        """These levels without the first and with the clean one, (alpha, sigma) = (1, 0), at the end."""
        return Levels(
            np.append(self.alpha[1:], 1.0),
            np.append(self.sigma[1:], 0.0),
            np.append(self.time[1:], 0.0),
            np.append(self.input_scale[1:], 1.0),
        )


@dataclass(frozen=True)
class Schedule:
    """The levels a network is trained on, from the least noise to the most.

    Raises:
        ValueError: the last level still shows the clean trajectory (terminal signal-to-noise ratio
            alpha^2 / sigma^2 above 0.0101): sampling starts from pure noise, which such a network never saw.
    """

    levels: Levels

    def __post_init__(self) -> None:
        alpha, sigma = self.levels.alpha[-1], self.levels.sigma[-1]
        terminal_snr = (alpha / sigma) ** 2
        if not terminal_snr <= MAX_TERMINAL_SNR:
            raise ValueError(
                f"schedule: terminal signal-to-noise ratio {terminal_snr:.4g} must be at most {MAX_TERMINAL_SNR}: "
                "sampling would start from noise that training never showed; use more levels, a larger last beta "
                "or the cosine schedule"
            )

    @classmethod
    def from_betas(cls, betas: FloatArray) -> Self:
        """The variance-preserving schedule of these betas [levels] (Ho et al. 2020, eq. 4)."""
        alpha_bar = np.cumprod(1.0 - betas)
        levels = np.arange(len(betas), dtype=np.float64)
        return cls(Levels(np.sqrt(alpha_bar), np.sqrt(1.0 - alpha_bar), levels, np.ones_like(levels)))

    def __len__(self) -> int:
        return len(self.levels)

    def pairs(self, steps: int) -> tuple[Levels, Levels]:
        """The level that each of `steps` rows starts from and the one it leads to, trailing spacing.

        Trailing (Lin et al. 2024, table 2): evenly spaced from the last level down; the last row leads to clean.
        """
        if not 1 <= steps <= len(self):
            raise ValueError(f"sampler: steps {steps} must be between 1 and {len(self)}, the trained levels")
        index = np.rint(len(self) * (1.0 - np.arange(steps) / steps)).astype(np.intp) - 1
        now = self.levels[index]
        return now, now.followed_by_clean()


def cosine(num_levels: int) -> Schedule:
    """Squared-cosine alpha_bar with betas capped at 0.999 (Nichol & Dhariwal 2021, eq. 17)."""
    _check_num_levels(num_levels)
    alpha_bar = np.cos((np.arange(num_levels + 1) / num_levels + 0.008) / 1.008 * np.pi / 2) ** 2
    return Schedule.from_betas(np.minimum(1.0 - alpha_bar[1:] / alpha_bar[:-1], 0.999))


def linear(num_levels: int, beta_start: float = 1e-4, beta_end: float = 2e-2) -> Schedule:
    """Betas evenly spaced (Ho et al. 2020, section 4); the defaults are meant for 1000 levels."""
    _check_num_levels(num_levels)
    if not 0.0 < beta_start <= beta_end < 1.0:
        raise ValueError(f"schedule: betas {beta_start} to {beta_end} must rise within (0, 1)")
    return Schedule.from_betas(np.linspace(beta_start, beta_end, num_levels))


def _check_num_levels(num_levels: int) -> None:
    if num_levels < 1:
        raise ValueError(f"schedule: num_levels {num_levels} must be at least 1")
