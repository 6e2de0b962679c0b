"""Multistep solvers of the probability-flow ODE in lambda: earlier clean estimates give the order.

Legend: now and after, the levels that a step leads from and to; lambda = log(alpha / sigma); h, the step in lambda;
decay, exp(-h); ratio, the step before over this one.

A first level without signal (lambda minus infinity) makes the first step infinitely long: in that limit the step is
DDIM's, and the step after it is of order 1.
"""

import numpy as np

from diffpolicy.diffusion.samplers.table import StepTable
from diffpolicy.diffusion.schedule import FloatArray, Levels


def dpmpp_2m(now: Levels) -> StepTable:
    """DPM-Solver++ 2M (Lu et al. 2022b, algorithm 2): order 2, one evaluation a step, the last of order 1."""
    after = now.followed_by_clean()
    a, b, past = after.sigma / now.sigma, after.alpha * (1.0 - _decay(now, after)), _extrapolation(now)
    return StepTable(now, a=a, b=b * (1.0 + past), s=np.zeros_like(a), c=(-b * past)[:, None])


def dpmpp_2m_sde(now: Levels) -> StepTable:
    """The same for the reverse-time SDE, SDE-DPM-Solver++ (Lu et al. 2022b, eq. 18)."""
    after = now.followed_by_clean()
    decay = _decay(now, after)
    a, b, past = after.sigma / now.sigma * decay, after.alpha * (1.0 - decay**2), _extrapolation(now)
    s = after.sigma * np.sqrt(1.0 - decay**2)
    return StepTable(now, a=a, b=b * (1.0 + past), s=s, c=(-b * past)[:, None])


def unipc(now: Levels) -> StepTable:
    """UniPC of order 2 with B(h) = exp(h) - 1 (Zhao et al. 2023, algorithms 5 to 8, data prediction).

    The corrector that a step begins with and the predictor that follows are one row: the state before the predictor
    is eliminated, which leaves three clean estimates.
    """
    after = now.followed_by_clean()
    a, scale, past = after.sigma / now.sigma, after.alpha * (1.0 - _decay(now, after)), _extrapolation(now)
    predictor = scale[:, None] * np.stack([1.0 + past, -past, np.zeros_like(past)], axis=1)  # on clean[0], [-1], [-2]
    corrector = np.zeros_like(predictor)  # what it adds to the predicted state that a row starts from
    h = np.diff(now.lambdas)
    for i in range(1, len(now)):
        weights = _corrector_weights(h[i - 1], h[i - 2] if i > 1 else np.inf)
        corrector[i] = scale[i - 1] * weights - np.roll(predictor[i - 1], 1)
    rows = predictor + a[:, None] * corrector
    return StepTable(now, a=a, b=rows[:, 0], s=np.zeros_like(a), c=rows[:, 1:])


def _decay(now: Levels, after: Levels) -> FloatArray:
    return now.alpha * after.sigma / (after.alpha * now.sigma)


def _extrapolation(now: Levels) -> FloatArray:
    """1 / (2 ratio): how far a step extrapolates from the earlier estimate to this one; 0 in steps of order 1."""
    past, h = np.zeros(len(now)), np.diff(now.lambdas)
    past[1:-1] = h[1:] / (2.0 * h[:-1])
    return past


def _corrector_weights(h: float, h_before: float) -> FloatArray:
    """Weights of the estimates at a step's end, at its start and one step earlier [3]; they add up to 1."""
    if not np.isfinite(h_before):  # order 1
        return np.array([0.5, 0.5, 0.0])
    ratio, phi_1 = -h_before / h, np.expm1(-h)
    phi_2 = phi_1 / -h - 1.0
    first, second = phi_2 / phi_1, 2.0 * (phi_2 / -h - 0.5) / phi_1
    on_older = (first - second) / (1.0 - ratio)
    on_new = first - on_older
    return np.array([on_new, 1.0 - on_new - on_older / ratio, on_older / ratio])
