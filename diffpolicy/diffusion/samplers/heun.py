"""Heun's method: an Euler step, then the same step again with the mean of the slopes at its start and its end.

Karras et al. 2022, algorithm 2, steps from t to t_next, where t is ratio = sigma / alpha and its state z is x / alpha:

    (1)  t_hat = t + gamma * t                                  raise the level (churn)
    (2)  z_hat = z + sqrt(t_hat^2 - t^2) * noise                add fresh noise
    (3)  d     = (z_hat - clean) / t_hat                        slope at the start
    (4)  z     = z_hat + (t_next - t_hat) * d                   Euler step
    (5)  d'    = (z - clean') / t_next                          slope at the end
    (6)  z     = z_hat + (t_next - t_hat) * (d / 2 + d' / 2)    step with the mean slope

A step is two rows of the table: (4), then (6) together with (1) and (2) of the next step. The last step, to the clean
trajectory, is (4) only, so there are 2 * steps - 1 evaluations of the network.

Legend: now, the levels before churn; start and end, the levels t_hat and t_next of a step; clean and clean', the
estimates at its start and its end.
"""

from dataclasses import dataclass

import numpy as np

from diffpolicy.diffusion.samplers.settings import SamplerConfig
from diffpolicy.diffusion.samplers.table import StepTable
from diffpolicy.diffusion.schedule import FloatArray, Levels, Schedule

_MAX_GAMMA = 2.0**0.5 - 1.0


@dataclass
class HeunConfig(SamplerConfig):
    """Settings of `heun`.

    Levels are spaced in log-SNR. With evenly spaced levels the first step would cross most of the noise, and its mean
    slope would overshoot.
    """

    name: str = "heun"
    spacing: str = "log_snr"
    churn: float = 0.0


def heun(now: Levels, schedule: Schedule, churn: float = 0.0) -> StepTable:
    """Heun's method in sigma / alpha with fresh noise (Karras et al. 2022, algorithm 2, with S_noise = 1).

    The fresh noise at the start of a step is added by the row before it. The first step adds none.

    Args:
        now: levels that the steps start from.
        schedule: gives the raised levels.
        churn: S_churn; 0 is deterministic.

    Raises:
        ValueError: churn is negative or infinite, or the first level holds no signal.
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
    # (6) minus (4) is (t_next - t_hat) / 2 * (d' - d). By (4) also d = (z - clean) / t_next, so with (5)
    # d' - d = (clean - clean') / t_next, and the correction of z is (t_hat / t_next - 1) / 2 * (clean' - clean).
    correction = end.alpha[:-1] / 2.0 * (ratio_start[:-1] / ratio_end - 1.0)
    # (2) with z = x / alpha: x_hat = alpha_start * (x / alpha_now + sqrt(t_hat^2 - t^2) * noise).
    gain = start.alpha / now.alpha
    fresh = start.alpha * np.sqrt(np.maximum(ratio_start**2 - ratio**2, 0.0))
    return _two_rows_a_step(start, end, correction, gain[1:], fresh[1:])


def flow_heun(now: Levels) -> StepTable:
    """Heun's method in time along the straight path alpha + sigma = 1 of flow matching (Lipman et al. 2023).

    The velocity is noise - clean = (x - clean) / t with t = sigma, so this is algorithm 2 for x itself, without churn.

    Raises:
        ValueError: the levels are not on the straight path.
    """
    if not np.allclose(now.alpha + now.sigma, 1.0, rtol=0.0, atol=1e-9):
        raise ValueError("sampler: flow_heun needs the straight path of the schedule flow; use heun on others")
    end = now.followed_by_clean()
    # As in `heun`: (t / t_next - 1) / 2 * (clean' - clean).
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


def _churned(now: Levels, schedule: Schedule, gamma: float) -> Levels:
    """(1): the levels with sigma / alpha multiplied by 1 + gamma, but at most that of the first level."""
    if gamma == 0.0:
        return now
    lambdas = np.maximum(now.lambdas - np.log1p(gamma), now.lambdas[0])
    return schedule.at(lambdas)
