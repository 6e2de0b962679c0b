"""Parameterizations: what the network predicts, and how its output gives the clean estimate.

    clean  = skip * x + out * output        at a level (alpha, sigma), x = alpha * clean + sigma * noise
    target = on_clean * clean + on_noise * noise

Targets are written in terms of (clean, noise), so that none divides by an alpha close to 0.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

Coefficients = Callable[[float, float], tuple[float, float]]


@dataclass(frozen=True)
class Parameterization:
    """Two pairs of coefficients as functions of a level's (alpha, sigma).

    Attributes:
        clean_from_output: (alpha, sigma) -> (skip, out).
        target: (alpha, sigma) -> (on_clean, on_noise).
        needs_signal: whether the clean estimate is undefined where alpha is 0.
    """

    clean_from_output: Coefficients
    target: Coefficients
    needs_signal: bool = False

    def output_from_clean(self, clean: Tensor, x: Tensor, alpha: float, sigma: float) -> Tensor:
        """The network output that corresponds to a clean estimate; it converts between any two parameterizations."""
        on_clean, on_noise = self.target(alpha, sigma)
        return on_clean * clean + on_noise * (x - alpha * clean) / sigma


EPSILON = Parameterization(  # Ho et al. 2020, eq. 15
    clean_from_output=lambda alpha, sigma: (1 / alpha, -sigma / alpha),
    target=lambda alpha, sigma: (0.0, 1.0),
    needs_signal=True,
)
CLEAN = Parameterization(
    clean_from_output=lambda alpha, sigma: (0.0, 1.0),
    target=lambda alpha, sigma: (1.0, 0.0),
)
V = Parameterization(  # Salimans & Ho 2022, section 4
    clean_from_output=lambda alpha, sigma: (alpha / (alpha**2 + sigma**2), -sigma / (alpha**2 + sigma**2)),
    target=lambda alpha, sigma: (-sigma, alpha),
)
SCORE = Parameterization(  # the gradient of the log-density, Song et al. 2021b, eq. 7; Tweedie's formula gives clean
    clean_from_output=lambda alpha, sigma: (1 / alpha, sigma**2 / alpha),
    target=lambda alpha, sigma: (0.0, -1 / sigma),
    needs_signal=True,
)
FLOW = Parameterization(  # the velocity noise - clean, Lipman et al. 2023, Liu et al. 2023
    clean_from_output=lambda alpha, sigma: (1 / (alpha + sigma), -sigma / (alpha + sigma)),
    target=lambda alpha, sigma: (-1.0, 1.0),
)


@dataclass
class EdmConfig:
    """Settings of EDM's parameterization and weighting; sigma_data is the standard deviation of normalised actions."""

    name: str = "edm"
    sigma_data: float = 0.5


def edm(sigma_data: float) -> Parameterization:
    """Preconditioning for data of standard deviation `sigma_data`, for any alpha (Karras et al. 2022, table 1).

    Output and target have unit variance at every level.

    Raises:
        ValueError: sigma_data is not positive and finite.
    """
    if not 0.0 < sigma_data < float("inf"):
        raise ValueError(f"parameterization: sigma_data {sigma_data} must be above 0")

    def clean_from_output(alpha: float, sigma: float) -> tuple[float, float]:
        variance = (alpha * sigma_data) ** 2 + sigma**2
        return alpha * sigma_data**2 / variance, sigma * sigma_data / variance**0.5

    def target(alpha: float, sigma: float) -> tuple[float, float]:
        std = ((alpha * sigma_data) ** 2 + sigma**2) ** 0.5
        return sigma / (sigma_data * std), -alpha * sigma_data / std

    return Parameterization(clean_from_output, target)
