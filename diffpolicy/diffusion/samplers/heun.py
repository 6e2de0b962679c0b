"""Heun's method: an Euler step, then the same step again with the mean of the slopes at its start and its end.

Karras et al. 2022, algorithm 2, steps from t to t_next, where t is ratio = sigma / alpha and its state z is x / alpha:

    (1)  t_hat = t + gamma * t                                  raise the level (churn), where S_min <= t <= S_max
    (2)  z_hat = z + S_noise * sqrt(t_hat^2 - t^2) * noise      add fresh noise
    (3)  d     = (z_hat - clean) / t_hat                        slope at the start
    (4)  z     = z_hat + (t_next - t_hat) * d                   Euler step
    (5)  d'    = (z - clean') / t_next                          slope at the end
    (6)  z     = z_hat + (t_next - t_hat) * (d / 2 + d' / 2)    step with the mean slope

Written with the estimates, (6) is z = ratio * z_hat + (1 - ratio) * (clean + weight * (clean' - clean)), where ratio is
t_next / t_hat and weight is 1 / (2 * ratio). A step across much noise would extrapolate far beyond clean'; `max_weight`
limits that. Steps that at most halve t, all of them on a fine grid, are those of algorithm 2.

A step is two rows of the table: (4), then (6) together with (1) and (2) of the next step. The last step, to the clean
trajectory, is (4) only, so there are 2 * steps - 1 evaluations of the network.

Legend: now, the levels before churn; start and end, the levels t_hat and t_next of a step; clean and clean', the
estimates at its start and its end.
"""

from dataclasses import dataclass, replace

import numpy as np

from diffpolicy.diffusion.samplers.settings import SamplerConfig
from diffpolicy.diffusion.samplers.table import StepTable
from diffpolicy.diffusion.schedule import FloatArray, Levels, Schedule

_MAX_GAMMA = 2.0**0.5 - 1.0


@dataclass
class HeunConfig(SamplerConfig):
    """Settings of `heun`.

    Attributes:
        spacing: by default one step across the levels that hold next to no signal, and the others below.
        churn, churn_min, churn_max, churn_noise: S_churn, S_min, S_max (None for no limit) and S_noise; churn 0 is
            deterministic.
        max_weight: of the estimate at the end of a step; None, for no limit, is algorithm 2 as published.
    """

    name: str = "heun"
    spacing: str = "noise_then_karras"
    churn: float = 0.0
    churn_min: float = 0.0
    churn_max: float | None = None
    churn_noise: float = 1.0
    max_weight: float | None = 1.0


def heun(now: Levels, schedule: Schedule, own: HeunConfig) -> StepTable:
    """Heun's method in sigma / alpha with fresh noise (Karras et al. 2022, algorithm 2).

    The fresh noise at the start of a step is added by the row before it, that of the first step by the start.

    Args:
        now: levels that the steps start from.
        schedule: gives the raised levels.

    Raises:
        ValueError: a setting is out of range, or the first level holds no signal.
    """
    _check(own)
    if not now.alpha[0] > 0:
        raise ValueError(
            "sampler: heun is undefined on a schedule whose last level holds no signal (flow, zero_terminal_snr), "
            "where sigma / alpha is infinite; use flow_heun on flow, else ddim"
        )
    ratio = now.sigma / now.alpha
    is_churned = (own.churn_min <= ratio) & (ratio <= _or_no_limit(own.churn_max))
    gamma = np.where(is_churned, min(own.churn / len(now), _MAX_GAMMA), 0.0).astype(np.float64)
    start, end = _raised(now, schedule, gamma), now.followed_by_clean()
    ratio_start, ratio_end = start.sigma / start.alpha, end.sigma[:-1] / end.alpha[:-1]
    # (6) minus (4), for x at the end of the step.
    step = ratio_end / ratio_start[:-1]
    correction = end.alpha[:-1] * (1.0 - step) * np.minimum(0.5 / step, _or_no_limit(own.max_weight))
    # (2) with z = x / alpha: x_hat = alpha_start * (x / alpha_now + S_noise * sqrt(t_hat^2 - t^2) * noise).
    gain = start.alpha / now.alpha
    fresh = start.alpha * own.churn_noise * np.sqrt(np.maximum(ratio_start**2 - ratio**2, 0.0))
    table = _two_rows_a_step(start, end, correction, gain[1:], fresh[1:])
    return replace(table, start=float(np.hypot(gain[0] * now.sigma[0], fresh[0])))


def flow_heun(now: Levels) -> StepTable:
    """Heun's method in time along the straight path alpha + sigma = 1 of flow matching (Lipman et al. 2023).

    The velocity is noise - clean = (x - clean) / t with t = sigma, so this is algorithm 2 for x itself, without churn.

    Raises:
        ValueError: the levels are not on the straight path.
    """
    if not np.allclose(now.alpha + now.sigma, 1.0, rtol=0.0, atol=1e-9):
        raise ValueError("sampler: flow_heun needs the straight path of the schedule flow; use heun on others")
    end = now.followed_by_clean()
    # (6) minus (4): (t / t_next - 1) / 2 * (clean' - clean).
    correction = 0.5 * (now.sigma[:-1] / end.sigma[:-1] - 1.0)
    return _two_rows_a_step(now, end, correction, np.ones_like(correction), np.zeros_like(correction))


def _two_rows_a_step(
    start: Levels, end: Levels, correction: FloatArray, gain: FloatArray, fresh: FloatArray
) -> StepTable:
    """Alternate the rows of the Euler steps and, for all steps but the last, of their corrections.

    Args:
        correction: [steps - 1], the factor of clean' - clean in (6) minus (4), for x.
        gain, fresh: [steps - 1], (1) and (2) of the next step: x = gain * x + fresh * noise.
    """
    # (4): z = t_next / t_hat * z_hat + (1 - t_next / t_hat) * clean. For x = alpha * z this is the step of DDIM.
    a = end.sigma / start.sigma
    b = end.alpha - a * start.alpha
    rows = 2 * len(start) - 1
    columns = {name: np.zeros(rows) for name in ("a", "b", "s", "c")}
    # Row 2 i, at the start of a step: x = a * x + b * clean.
    columns["a"][0::2], columns["b"][0::2] = a, b
    # Row 2 i + 1, at its end: x = gain * (x + correction * (clean' - clean)) + fresh * noise.
    columns["a"][1::2], columns["s"][1::2] = gain, fresh
    columns["b"][1::2], columns["c"][1::2] = gain * correction, -gain * correction
    now = _interleaved(start, end[:-1])
    return StepTable(now, a=columns["a"], b=columns["b"], s=columns["s"], c=columns["c"][:, None])


def _interleaved(start: Levels, end: Levels) -> Levels:
    def column(name: str) -> FloatArray:
        values = np.empty(len(start) + len(end))
        values[0::2], values[1::2] = getattr(start, name), getattr(end, name)
        return values

    return Levels(column("alpha"), column("sigma"), column("time"), column("input_scale"))


def _raised(now: Levels, schedule: Schedule, gamma: FloatArray) -> Levels:
    """(1): the levels with sigma / alpha multiplied by 1 + gamma [steps].

    On a schedule whose network knows no level beyond the last one, they are raised to it at most.
    """
    if not gamma.any():
        return now
    raised = now.lambdas - np.log1p(gamma)
    return schedule.at(raised if schedule.family.time else np.maximum(raised, now.lambdas[0]), beyond=True)


def _check(own: HeunConfig) -> None:
    if not 0.0 <= own.churn < np.inf:
        raise ValueError(f"sampler: churn {own.churn} must be at least 0")
    if not 0.0 <= own.churn_min <= _or_no_limit(own.churn_max):
        raise ValueError(f"sampler: churn_min {own.churn_min} and churn_max {own.churn_max} must rise from 0")
    if not 0.0 <= own.churn_noise < np.inf:
        raise ValueError(f"sampler: churn_noise {own.churn_noise} must be at least 0")
    if not _or_no_limit(own.max_weight) > 0.0:
        raise ValueError(f"sampler: max_weight {own.max_weight} must be above 0")


def _or_no_limit(limit: float | None) -> float:
    return np.inf if limit is None else limit
