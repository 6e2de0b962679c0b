"""Multistep solvers of the probability-flow ODE in lambda. They reach order 2 by reusing earlier clean estimates.

Legend: now and after, the levels at the start and the end of a step; lambda = log(alpha / sigma); h, the step in
lambda; decay, exp(-h); ratio, the previous h divided by this one.

A first level without signal (lambda = -infinity) makes the first step infinitely long. In that limit it is a DDIM step,
and the step after it has order 1.
"""

import numpy as np

from diffpolicy.diffusion.samplers.table import StepTable
from diffpolicy.diffusion.schedule import FloatArray, Levels


def dpmpp_2m(now: Levels) -> StepTable:
    """DPM-Solver++ 2M (Lu et al. 2022b, algorithm 2): order 2 with one evaluation per step; the last has order 1.

    With D = (1 + 1 / (2 ratio)) * clean - 1 / (2 ratio) * clean[-1] a step is

        x = sigma_after / sigma_now * x + alpha_after * (1 - exp(-h)) * D
    """
    after = now.followed_by_clean()
    a, b, past = after.sigma / now.sigma, after.alpha * (1.0 - _decay(now, after)), _extrapolation(now)
    return StepTable(now, a=a, b=b * (1.0 + past), s=np.zeros_like(a), c=(-b * past)[:, None])


def dpmpp_2m_sde(now: Levels) -> StepTable:
    """SDE-DPM-Solver++ 2M, the same method for the reverse-time SDE (Lu et al. 2022b, eq. 18).

    With D as in `dpmpp_2m` a step is

        x = sigma_after / sigma_now * exp(-h) * x + alpha_after * (1 - exp(-2 h)) * D
            + sigma_after * sqrt(1 - exp(-2 h)) * noise
    """
    after = now.followed_by_clean()
    decay = _decay(now, after)
    a, b, past = after.sigma / now.sigma * decay, after.alpha * (1.0 - decay**2), _extrapolation(now)
    s = after.sigma * np.sqrt(1.0 - decay**2)
    return StepTable(now, a=a, b=b * (1.0 + past), s=s, c=(-b * past)[:, None])


def unipc(now: Levels) -> StepTable:
    """UniPC of order 2 with B(h) = exp(h) - 1 and data prediction (Zhao et al. 2023, algorithms 5 to 8).

    A row is the corrector of the previous step and the predictor of this one. Eliminating the state between them leaves
    three clean estimates.
    """
    after = now.followed_by_clean()
    a, scale, past = after.sigma / now.sigma, after.alpha * (1.0 - _decay(now, after)), _extrapolation(now)
    predictor = scale[:, None] * np.stack([1.0 + past, -past, np.zeros_like(past)], axis=1)  # on clean[0], [-1], [-2]
    corrector = np.zeros_like(predictor)  # what the corrector adds to the predicted state x
    h = np.diff(now.lambdas)
    for i in range(1, len(now)):
        weights = _corrector_weights(h[i - 1], h[i - 2] if i > 1 else np.inf)
        corrector[i] = scale[i - 1] * weights - np.roll(predictor[i - 1], 1)
    rows = predictor + a[:, None] * corrector
    return StepTable(now, a=a, b=rows[:, 0], s=np.zeros_like(a), c=rows[:, 1:])


def _decay(now: Levels, after: Levels) -> FloatArray:
    return now.alpha * after.sigma / (after.alpha * now.sigma)


def _extrapolation(now: Levels) -> FloatArray:
    """1 / (2 ratio), how far a step extrapolates beyond the latest clean estimate; 0 for steps of order 1."""
    past, h = np.zeros(len(now)), np.diff(now.lambdas)
    past[1:-1] = h[1:] / (2.0 * h[:-1])
    return past


def _corrector_weights(h: float, h_before: float) -> FloatArray:
    """Weights [3] of the estimates at the end of a step, at its start, and one step earlier; they sum to 1."""
    if not np.isfinite(h_before):  # order 1
        return np.array([0.5, 0.5, 0.0])
    ratio, phi_1 = -h_before / h, np.expm1(-h)
    phi_2 = phi_1 / -h - 1.0
    first, second = phi_2 / phi_1, 2.0 * (phi_2 / -h - 0.5) / phi_1
    on_older = (first - second) / (1.0 - ratio)
    on_new = first - on_older
    return np.array([on_new, 1.0 - on_new - on_older / ratio, on_older / ratio])
