"""DDPM and DDIM: one family of samplers, which differ in how much fresh noise a step adds.

    x = alpha_after * clean + sqrt(sigma_after^2 - s^2) * (x - alpha_now * clean) / sigma_now + s * noise

This is Song et al. 2021a, eq. 12. With a = sqrt(sigma_after^2 - s^2) / sigma_now it is a row of a table:

    x = a * x + (alpha_after - a * alpha_now) * clean + s * noise

Legend: now and after, the levels at the start and the end of a step; beta, the variance that the forward process adds
between them; s, the standard deviation of the fresh noise; eta, the ratio of s to the posterior's standard deviation.
"""

from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np

from diffpolicy.diffusion.samplers.settings import SamplerConfig
from diffpolicy.diffusion.samplers.table import StepTable
from diffpolicy.diffusion.schedule import FloatArray, Levels
from diffpolicy.system.schema import Range


@dataclass
class AncestralConfig(SamplerConfig):
    """What both samplers share.

    Attributes:
        start: standard deviation of the noise that sampling starts from; None for the sigma of the first level. The
            samplers of diffusers start from 1, which differs where the first level is not the last trained one.
    """

    start: Annotated[float | None, Range(above=0.0, most=1e3)] = None


@dataclass
class DdimConfig(AncestralConfig):
    """Settings of `ddim`."""

    name: str = "ddim"
    eta: float = 0.0
    clipped_epsilon: bool = True  # False: the noise estimate of before the projection, as in the published policies


@dataclass
class DdpmConfig(AncestralConfig):
    """Settings of `ddpm`."""

    name: str = "ddpm"
    variance: str = "posterior"  # or beta; or learned, for diffusion=learned_variance


def ddim(now: Levels, eta: float = 0.0, clipped_epsilon: bool = True) -> StepTable:
    """DDIM (Song et al. 2021a, eq. 12 and 16): deterministic for eta 0, DDPM with the posterior variance for eta 1.

    With eta 0 it is Euler's method for the probability-flow ODE, both in sigma / alpha (Karras et al. 2022) and along
    the straight path of flow matching.

    The noise estimate (x - alpha * clean) / sigma is that of the projected estimate. With `clipped_epsilon` False it is
    that of the estimate before the projection, as in diffusers, where use_clipped_model_output is False by default.

    Raises:
        ValueError: eta is not between 0 and 1.
    """
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"sampler: eta {eta} must be between 0 (deterministic) and 1 (DDPM)")
    after = now.followed_by_clean()
    s = eta * after.sigma / now.sigma * np.sqrt(_beta(now, after))
    a = np.sqrt(after.sigma**2 - s**2) / now.sigma
    if clipped_epsilon:
        return StepTable(now, a=a, b=after.alpha - a * now.alpha, s=s)
    return StepTable(now, a=a, b=after.alpha, s=s, raw=-a * now.alpha)


def ddpm(now: Levels, variance: str = "posterior") -> StepTable:
    """DDPM (Ho et al. 2020, eq. 7): the mean of the posterior, with its variance (beta-tilde) or with the larger beta.

    `variance` is "posterior" or "beta", the lower and upper bound for the reverse process (section 3.2), or "learned",
    where the network says how far it is from one to the other (Nichol & Dhariwal 2021, eq. 15).

    Raises:
        ValueError: the variance is none of them.
    """
    if variance not in ("posterior", "beta", "learned"):
        raise ValueError(f"sampler: variance {variance!r} must be 'posterior', 'beta' or 'learned'")
    posterior = ddim(now, eta=1.0)
    if variance == "posterior":
        return posterior
    after = now.followed_by_clean()
    if variance == "learned":  # the last step, to clean, has a posterior without variance
        above = np.append(0.5 * np.log(_beta(now, after)[:-1]) - np.log(posterior.s[:-1]), 0.0)
        return replace(posterior, spread=above)
    s = np.sqrt(_beta(now, after)) * (after.sigma > 0)  # the last step, to clean, adds no noise
    return StepTable(now, a=posterior.a, b=posterior.b, s=s)


def posterior_steps(now: Levels, after: Levels) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Of q(x_after | x_now, clean): the factor of clean in its mean; beta; and its variance beta-tilde, each [steps].

    Ho et al. 2020, eq. 7, for any schedule.
    """
    beta = _beta(now, after)
    return after.alpha * beta / now.sigma**2, beta, after.sigma**2 / now.sigma**2 * beta


def started(table: StepTable, own: AncestralConfig) -> StepTable:
    """The table with the start of the settings."""
    return table if own.start is None else replace(table, start=own.start)


def _beta(now: Levels, after: Levels) -> FloatArray:
    return now.sigma**2 - (now.alpha / after.alpha * after.sigma) ** 2
