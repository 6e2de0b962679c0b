"""Heun's method: an Euler step, a second look from where it led, and the step again with the mean slope.

A step is two rows, one at its start and one at its end; the last step, to the clean trajectory, is Euler's alone:
2 steps - 1 evaluations. Legend: start and end, the levels of a step; ratio, sigma / alpha; gamma, the churn.
"""

from dataclasses import dataclass, field

import numpy as np

from diffpolicy.diffusion.samplers.settings import GuidanceConfig
from diffpolicy.diffusion.samplers.table import StepTable
from diffpolicy.diffusion.schedule import FloatArray, Levels, Schedule

_MAX_GAMMA = 2.0**0.5 - 1.0


@dataclass
class HeunConfig:
    """Settings of `heun`.

    Levels are spaced in log-SNR: evenly spaced ones would begin with a jump over most of the noise, whose mean slope
    overshoots.
    """

    name: str = "heun"
    steps: int = 10
    spacing: str = "log_snr"
    churn: float = 0.0
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)


def heun(now: Levels, schedule: Schedule, churn: float = 0.0) -> StepTable:
    """Heun in sigma / alpha with `churn` (S_churn) of fresh noise (Karras et al. 2022, algorithm 2).

    The fresh noise that a step begins with is added at the end of the row before; the first step has noise enough.
    """
    if not 0.0 <= churn < np.inf:
        raise ValueError(f"sampler: churn {churn} must be at least 0")
    if not now.alpha[0] > 0:
        raise ValueError(
            "sampler: heun is undefined on a schedule whose last level holds no signal (flow, zero_terminal_snr), "
            "where sigma / alpha is infinite; use flow_heun on flow, else ddim"
        )
    start, end = _churned(now, schedule, min(churn / len(now), _MAX_GAMMA)), now.followed_by_clean()
    ratio, ratio_start, ratio_end = now.sigma / now.alpha, start.sigma / start.alpha, end.sigma[:-1] / end.alpha[:-1]
    correction = end.alpha[:-1] / 2.0 * (ratio_start[:-1] / ratio_end - 1.0)
    gain = start.alpha / now.alpha
    fresh = start.alpha * np.sqrt(np.maximum(ratio_start**2 - ratio**2, 0.0))
    return _two_rows_a_step(start, end, correction, gain[1:], fresh[1:])


def flow_heun(now: Levels) -> StepTable:
    """Heun in time along the straight path alpha + sigma = 1 of flow matching."""
    if not np.allclose(now.alpha + now.sigma, 1.0, rtol=0.0, atol=1e-9):
        raise ValueError("sampler: flow_heun needs the straight path of the schedule flow; use heun on others")
    end = now.followed_by_clean()
    correction = 0.5 * (now.sigma[:-1] / end.sigma[:-1] - 1.0)
    return _two_rows_a_step(now, end, correction, np.ones_like(correction), np.zeros_like(correction))


def _two_rows_a_step(
    start: Levels, end: Levels, correction: FloatArray, gain: FloatArray, fresh: FloatArray
) -> StepTable:
    """DDIM from start to end; then, but for the last step, the mean slope, seen from where DDIM led.

    With c_1 and c_2 the estimates at a step's two ends, the corrected state is x + correction * (c_2 - c_1).

    Args:
        correction, gain, fresh: [steps - 1]; the corrected state is multiplied by gain and gets noise of std fresh.
    """
    a = end.sigma / start.sigma
    b = end.alpha - a * start.alpha
    rows = 2 * len(start) - 1
    columns = {name: np.zeros(rows) for name in ("a", "b", "s", "c")}
    columns["a"][0::2], columns["b"][0::2] = a, b
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


def _churned(now: Levels, schedule: Schedule, gamma: float) -> Levels:
    """The levels with sigma / alpha raised by 1 + gamma, all but the first and never above it."""
    if gamma == 0.0:
        return now
    lambdas = np.maximum(now.lambdas - np.log1p(gamma), now.lambdas[0])
    return schedule.at(lambdas)
