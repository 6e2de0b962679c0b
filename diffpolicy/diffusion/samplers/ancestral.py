"""DDPM and DDIM: one family, told apart by how much fresh noise a step adds.

Legend: now and after, the levels that a step leads from and to; beta, the variance that lies between them;
s, the standard deviation of fresh noise; eta, its share of the posterior's.
"""

from dataclasses import dataclass, field

import numpy as np

from diffpolicy.diffusion.samplers.settings import GuidanceConfig
from diffpolicy.diffusion.samplers.table import StepTable
from diffpolicy.diffusion.schedule import FloatArray, Levels


@dataclass
class DdimConfig:
    """Settings of `ddim`."""

    name: str = "ddim"
    steps: int = 10
    spacing: str = "trailing"
    eta: float = 0.0
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)


@dataclass
class DdpmConfig:
    """Settings of `ddpm`."""

    name: str = "ddpm"
    steps: int = 10
    spacing: str = "trailing"
    variance: str = "posterior"  # or beta
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)


def ddim(now: Levels, eta: float = 0.0) -> StepTable:
    """DDIM (Song et al. 2021a, eq. 12 and 16): deterministic at eta 0, DDPM with posterior variance at eta 1.

    At eta 0 it is Euler's method for the probability-flow ODE, in sigma / alpha (Karras et al. 2022) as well as along
    the straight path of flow matching.
    """
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"sampler: eta {eta} must be between 0 (deterministic) and 1 (DDPM)")
    after = now.followed_by_clean()
    s = eta * after.sigma / now.sigma * np.sqrt(_beta(now, after))
    a = np.sqrt(after.sigma**2 - s**2) / now.sigma
    return StepTable(now, a=a, b=after.alpha - a * now.alpha, s=s)


def ddpm(now: Levels, variance: str = "posterior") -> StepTable:
    """DDPM (Ho et al. 2020, eq. 7): the posterior's mean, with its variance (beta-tilde) or the larger beta.

    `variance` is "posterior" or "beta"; they bound the reverse process from both sides (section 3.2).
    """
    if variance not in ("posterior", "beta"):
        raise ValueError(f"sampler: variance {variance!r} must be 'posterior' or 'beta'")
    posterior = ddim(now, eta=1.0)
    if variance == "posterior":
        return posterior
    after = now.followed_by_clean()
    s = np.sqrt(_beta(now, after)) * (after.sigma > 0)  # the last step, to clean, adds no noise
    return StepTable(now, a=posterior.a, b=posterior.b, s=s)


def _beta(now: Levels, after: Levels) -> FloatArray:
    return now.sigma**2 - (now.alpha / after.alpha * after.sigma) ** 2
