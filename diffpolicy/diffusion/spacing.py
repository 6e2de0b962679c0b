"""Spacings: the levels that a sampler visits, from the most noise to the least.

trailing and leading pick trained levels; the others also use levels between them. All raise ValueError unless there are
at least as many trained levels as steps; the others also if the last level holds no signal.
"""

from collections.abc import Callable, Mapping

import numpy as np

from diffpolicy.diffusion.schedule import Levels, Schedule, check_steps
from diffpolicy.diffusion.schedules import karras_spaced

MOST_NOISE = 3.0  # sigma / alpha of the second level of noise_then_karras


def trailing(schedule: Schedule, steps: int) -> Levels:
    """Evenly spaced from the last level down (Lin et al. 2024, table 2)."""
    check_steps(steps, len(schedule))
    index = np.rint(len(schedule) * (1.0 - np.arange(steps) / steps)).astype(np.intp) - 1
    return schedule.levels[index]


def leading(schedule: Schedule, steps: int) -> Levels:
    """Evenly spaced from the first level up, as in the code of Ho et al. 2020 and of DDIM.

    This starts below the last level: sampling then begins with pure noise at a level that holds some signal. `trailing`
    does not have this flaw.
    """
    check_steps(steps, len(schedule))
    return schedule.levels[np.arange(steps)[::-1] * (len(schedule) // steps)]


def log_snr(schedule: Schedule, steps: int) -> Levels:
    """Evenly spaced in the logarithm of the signal-to-noise ratio (Lu et al. 2022, section 3)."""
    first, last = _lambda_range(schedule, steps, "log_snr")
    return schedule.at(np.linspace(first, last, steps))


def karras(schedule: Schedule, steps: int) -> Levels:
    """Evenly spaced in the 7th root of sigma / alpha (Karras et al. 2022, eq. 5)."""
    first, last = _lambda_range(schedule, steps, "karras")
    return schedule.at(-np.log(karras_spaced(np.exp(-first), np.exp(-last), steps)))


def noise_then_karras(schedule: Schedule, steps: int) -> Levels:
    """The last level, then as `karras` from sigma / alpha = 3 on, for solvers that walk in sigma / alpha.

    Next to nothing of the trajectory shows above 3, while on a schedule such as cosine sigma / alpha goes on to
    thousands; one step crosses that range.
    """
    most, least = _lambda_range(schedule, steps, "noise_then_karras")
    below = karras_spaced(min(MOST_NOISE, np.exp(-most)), np.exp(-least), steps - 1)
    return schedule.at(np.append(most, -np.log(below)))


SPACINGS: Mapping[str, Callable[[Schedule, int], Levels]] = {
    "trailing": trailing,
    "leading": leading,
    "log_snr": log_snr,
    "karras": karras,
    "noise_then_karras": noise_then_karras,
}


def _lambda_range(schedule: Schedule, steps: int, name: str) -> tuple[float, float]:
    """The lambdas of the levels with the most and the least noise."""
    check_steps(steps, len(schedule))
    most, least = schedule.levels.lambdas[-1], schedule.levels.lambdas[0]
    if not np.isfinite(most):
        raise ValueError(
            f"sampler: spacing {name} is undefined on a schedule whose last level holds no signal (flow, "
            "zero_terminal_snr): its log-SNR is minus infinity; use trailing"
        )
    return float(most), float(least)
