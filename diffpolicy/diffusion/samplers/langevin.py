"""Samplers that follow the score: the reverse-time SDE, Langevin correctors, and annealed Langevin dynamics.

All step sizes are fixed in advance, because a size that depends on the norm of the score does not fit a table. Legend:
now and after, the levels at the start and the end of a step; lambda = log(alpha / sigma); score = (alpha * clean - x) /
sigma^2; rate, the length of a Langevin step divided by sigma^2; decay, exp(-rate).
"""

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from diffpolicy.diffusion.samplers.settings import SamplerConfig
from diffpolicy.diffusion.samplers.table import StepTable
from diffpolicy.diffusion.schedule import Levels
from diffpolicy.system.schema import Range

_Rows = list[tuple[int, float, float, float]]  # index of the level, a, b, s


@dataclass
class LangevinConfig(SamplerConfig):
    """Settings of `langevin`; `steps` is the number of levels."""

    name: str = "langevin"
    steps: Annotated[int, Range(1, 1000)] = 20
    langevin_steps: Annotated[int, Range(1, 100)] = 5  # per level
    langevin_rate: float = 1.0  # length of a Langevin step divided by sigma^2


@dataclass
class PredictorCorrectorConfig(SamplerConfig):
    """Settings of `predictor_corrector`."""

    name: str = "predictor_corrector"
    langevin_steps: Annotated[int, Range(0, 100)] = 1  # per level
    langevin_rate: float = 0.1  # length of a Langevin step divided by sigma^2


def reverse_sde(now: Levels) -> StepTable:
    """Euler-Maruyama steps of the reverse-time SDE (Song et al. 2021b, eq. 6); the last one returns the clean estimate.

    With drift f x and diffusion g, f = d log(alpha) / dt and g^2 = -2 sigma^2 d lambda / dt. A step therefore needs
    only the increments of log(alpha) and lambda.

    Raises:
        ValueError: the first level holds no signal.
    """
    return predictor_corrector(now, corrector_steps=0, rate=1.0)


def predictor_corrector(now: Levels, corrector_steps: int = 1, rate: float = 0.1) -> StepTable:
    """Steps of the reverse-time SDE, each followed by Langevin steps at the new level (Song et al. 2021b, algorithm 1).

    Raises:
        ValueError: a setting is out of range, or the first level holds no signal.
    """
    _check(corrector_steps, 0, rate)
    steps = _euler_maruyama(now)
    rows: _Rows = []
    for i, (a, b, s) in enumerate(steps):
        if i > 0:
            rows += [(i, *_langevin(now, i, rate))] * corrector_steps
        rows.append((i, a, b, s))
    return _table(now, rows)


def langevin(now: Levels, steps_per_level: int = 5, rate: float = 1.0) -> StepTable:
    """Annealed Langevin dynamics (Song & Ermon 2019, algorithm 1): Langevin steps at each level, from noisy to clean.

    Euler's step, which they take, inflates the variance in proportion to its length. Here the pull of the score towards
    alpha * clean is integrated exactly, and the estimate is extrapolated by half a step from the one before
    (Adams-Bashforth), which leaves an error of second order:

        x = decay * x + (1 - decay) * alpha * (clean + (clean - clean[-1]) / 2) + sigma * sqrt(1 - decay^2) * noise

    In the first step at a level, where clean[-1] comes from the level before, the extrapolation is reduced by the ratio
    of the two signal-to-noise ratios. Between levels x is multiplied by alpha_after / alpha_now, which is 1 for VE, so
    that its signal has the scale of the next level.

    Raises:
        ValueError: a setting is out of range, or the first level holds no signal.
    """
    _check(steps_per_level, 1, rate)
    if not now.alpha[0] > 0:
        raise ValueError(_NO_SIGNAL.format("langevin"))
    at, decay = now[np.repeat(np.arange(len(now)), steps_per_level)], math.exp(-rate)
    past = 0.5 * np.append(0.0, at.snr[:-1] / at.snr[1:])  # 1 / 2 within a level
    gain = np.append(at.alpha[1:] / at.alpha[:-1], 0.0)  # the last row returns the estimate
    b, s = gain * (1.0 - decay) * at.alpha, gain * at.sigma * math.sqrt(1.0 - decay**2)
    on_clean = np.append((b * (1.0 + past))[:-1], 1.0)
    return StepTable(at, a=gain * decay, b=on_clean, s=s, c=(-b * past)[:, None])


_NO_SIGNAL = (
    "sampler: {} is undefined on a schedule whose last level holds no signal (flow, zero_terminal_snr), where lambda "
    "is minus infinity; use ddpm"
)


def _euler_maruyama(now: Levels) -> list[tuple[float, float, float]]:
    """(a, b, s) of every step: x + drift x + 2 h sigma^2 score + sqrt(2 h) sigma noise, with h the step in lambda."""
    if not now.alpha[0] > 0:
        raise ValueError(_NO_SIGNAL.format("the reverse-time SDE"))
    h = np.diff(now.lambdas)
    drift = np.diff(np.log(now.alpha))
    a, b, s = 1.0 + drift - 2.0 * h, 2.0 * h * now.alpha[:-1], now.sigma[:-1] * np.sqrt(2.0 * h)
    return [*zip(a.tolist(), b.tolist(), s.tolist(), strict=True), (0.0, 1.0, 0.0)]


def _langevin(now: Levels, level: int, rate: float) -> tuple[float, float, float]:
    """(a, b, s) of one Langevin step: x + rate sigma^2 score + sqrt(2 rate) sigma noise."""
    return 1.0 - rate, rate * float(now.alpha[level]), float(now.sigma[level]) * (2.0 * rate) ** 0.5


def _check(steps: int, least: int, rate: float) -> None:
    if steps < least:
        raise ValueError(f"sampler: {steps} Langevin steps per level, expected at least {least}")
    if not 0.0 < rate <= 1.0:
        raise ValueError(f"sampler: rate {rate} must be above 0 and at most 1")


def _table(now: Levels, rows: _Rows) -> StepTable:
    level, a, b, s = (np.array(column) for column in zip(*rows, strict=True))
    return StepTable(now[level.astype(np.intp)], a=a, b=b, s=s)
