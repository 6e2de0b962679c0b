"""Multistep solvers of the probability-flow ODE in lambda. They reach order 2 or 3 by reusing earlier clean estimates.

Legend: now and after, the levels at the start and the end of a step; lambda = log(alpha / sigma); h, the step in
lambda; decay, exp(-h); ratio, the previous h divided by this one (ratio_before, the one before that); node, the place
of an estimate in units of h, 0 at the start of the step and 1 at its end.

A first level without signal (lambda = -infinity) makes the first step infinitely long. In that limit it is a DDIM step,
and the step after it has order 1.
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from diffpolicy.diffusion.samplers.settings import SamplerConfig
from diffpolicy.diffusion.samplers.table import StepTable
from diffpolicy.diffusion.schedule import FloatArray, Levels
from diffpolicy.system.schema import Range

SHORT = 15  # fewer steps than this end with one of order 2 before the one of order 1


@dataclass
class Dpmpp3mConfig(SamplerConfig):
    """Settings of `dpmpp_3m`."""

    name: str = "dpmpp_3m"
    as_published: bool = False  # half the weight of D2, as in the authors' code and diffusers; the order is then 2


@dataclass
class UnipcConfig(SamplerConfig):
    """Settings of `unipc`."""

    name: str = "unipc"
    order: Annotated[int, Range(1, 3)] = 2  # of the predictor: 1 to 3


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


def dpmpp_3m(now: Levels, as_published: bool = False) -> StepTable:
    """DPM-Solver++ of order 3 with one evaluation per step (Lu et al. 2022b, appendix B).

    With the differences first = (clean - clean[-1]) / ratio and before = (clean[-1] - clean[-2]) / ratio_before,
    D2 = (first - before) / (ratio + ratio_before) and D1 = first + ratio * D2, a step is

        x = sigma_after / sigma_now * x + alpha_after * ((1 - exp(-h)) * clean + (1 - (1 - exp(-h)) / h) * D1
            + (1 - 2 * (exp(-h) - 1 + h) / h^2) * D2)

    D2 is half the second derivative, so its weight is twice that of the third-order term of the expansion. The authors'
    code and diffusers leave out this 2 (`as_published`), which costs an order.

    It begins with steps of order 1 and 2, and ends with one of order 1; with few steps, one of order 2 comes before.
    """
    table, after, h = dpmpp_2m(now), now.followed_by_clean(), np.diff(now.lambdas)
    b, c = table.b.copy(), np.zeros((len(now), 2))
    c[:, :1] = table.c if table.c is not None else 0.0
    for i in range(2, len(now) - (2 if len(now) < SHORT else 1)):
        if not np.isfinite(h[i - 2]):
            continue  # the step across pure noise is no part of a difference
        ratio, ratio_before = h[i - 1] / h[i], h[i - 2] / h[i]
        first, before = np.array([1.0, -1.0, 0.0]) / ratio, np.array([0.0, 1.0, -1.0]) / ratio_before
        d2 = (first - before) / (ratio + ratio_before)
        reach = -np.expm1(-h[i])
        on_d2 = (0.5 - (h[i] - reach) / h[i] ** 2) * (1.0 if as_published else 2.0)
        weights = (1.0 - reach / h[i]) * (first + ratio * d2) + on_d2 * d2
        weights[0] += reach
        b[i], *c[i] = after.alpha[i] * weights
    return StepTable(now, a=table.a, b=b, s=table.s, c=c)


def unipc(now: Levels, order: int = 2) -> StepTable:
    """UniPC with B(h) = exp(h) - 1 and data prediction (Zhao et al. 2023, algorithms 5 to 8).

    A row is the corrector of the previous step and the predictor of this one. Eliminating the state between them leaves
    `order` + 1 clean estimates. The first and the last steps have a lower order.

    Raises:
        ValueError: the order is not 1, 2 or 3.
    """
    if order not in (1, 2, 3):
        raise ValueError(f"sampler: order {order} must be 1, 2 or 3")
    after, h = now.followed_by_clean(), np.diff(now.lambdas)
    a, scale = after.sigma / now.sigma, after.alpha * (1.0 - _decay(now, after))
    row = np.arange(len(now))
    begun = (
        row + 1 if not len(h) or np.isfinite(h[0]) else np.maximum(row, 1)
    )  # a step across pure noise does not count
    orders = np.minimum(np.minimum(begun, len(now) - row), order)
    predictor = np.zeros((len(now), order + 1))  # on clean[0], [-1], ...
    corrector = np.zeros_like(predictor)  # what the corrector adds to the predicted state x
    for i in row:
        nodes = [float((now.lambdas[i - j] - now.lambdas[i]) / h[i]) for j in range(1, orders[i])]
        predictor[i, : orders[i]] = scale[i] * _weights(nodes, float(h[i]) if nodes else np.inf)
    for i in row[1:]:
        nodes = [float((now.lambdas[i - 1 - j] - now.lambdas[i - 1]) / h[i - 1]) for j in range(1, orders[i - 1])]
        start, *older, end = _weights([*nodes, 1.0], float(h[i - 1]))
        corrector[i, : orders[i - 1] + 1] = scale[i - 1] * np.array([end, start, *older])
        corrector[i] -= np.roll(predictor[i - 1], 1)
    rows = predictor + a[:, None] * corrector
    return StepTable(now, a=a, b=rows[:, 0], s=np.zeros_like(a), c=rows[:, 1:])


def _decay(now: Levels, after: Levels) -> FloatArray:
    return now.alpha * after.sigma / (after.alpha * now.sigma)


def _extrapolation(now: Levels) -> FloatArray:
    """1 / (2 ratio), how far a step extrapolates beyond the latest clean estimate; 0 for steps of order 1."""
    past, h = np.zeros(len(now)), np.diff(now.lambdas)
    past[1:-1] = h[1:] / (2.0 * h[:-1])
    return past


def _weights(nodes: list[float], h: float) -> FloatArray:
    """Weights [1 + nodes] of the estimates at the start of a step and at the nodes; they sum to 1.

    They integrate a polynomial through the estimates exactly, but for a single node, where UniPC takes 1 / 2.
    """
    rho = np.full(len(nodes), 0.5)
    if len(nodes) > 1:
        phi, factorial, wanted = np.expm1(-h) / -h - 1.0, 1.0, list[float]()
        for power in range(1, len(nodes) + 1):
            wanted.append(phi * factorial / np.expm1(-h))
            factorial *= power + 1
            phi = phi / -h - 1.0 / factorial
        rho = np.linalg.solve(np.vander(nodes, increasing=True).T, wanted)
    on_nodes = rho / np.array(nodes)
    return np.array([1.0 - on_nodes.sum(), *on_nodes])
