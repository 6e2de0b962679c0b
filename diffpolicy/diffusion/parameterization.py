"""What the network's output means: clean estimate from output, and training target from clean and noise.

    clean  = skip * x + out * output        at a level (alpha, sigma), x = alpha * clean + sigma * noise
    target = on_clean * clean + on_noise * noise

Targets are stated in (clean, noise), so that none divides by a vanishing alpha or sigma.
"""

from collections.abc import Callable
from dataclasses import dataclass

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
