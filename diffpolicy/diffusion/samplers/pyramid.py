"""A pyramid of levels: every waypoint is denoised as by DDIM, and each starts later than the one before it.

Near waypoints are clean first, and far ones are denoised given almost clean near ones (Chen et al. 2024, section 3.3).
Waypoints wait at the first level of their steps before and at the lowest trained level after them, and
leave that one together. It is for networks that know a level for each waypoint.
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from diffpolicy.diffusion.samplers.ancestral import ddim
from diffpolicy.diffusion.samplers.settings import SamplerConfig
from diffpolicy.diffusion.samplers.table import StepTable
from diffpolicy.diffusion.schedule import Levels, Schedule
from diffpolicy.system.schema import Range


@dataclass
class PyramidConfig(SamplerConfig):
    """Settings of `pyramid`: `delay`, the rows by which a waypoint is behind the one before it; 0 is DDIM."""

    name: str = "pyramid"
    delay: Annotated[float, Range(least=0.0, most=1000.0)] = 0.5


def pyramid(now: Levels, schedule: Schedule, length: int, delay: float) -> StepTable:
    """DDIM from the levels `now`, with a waypoint `delay` rows (rounded down as a sum) behind the one before it.

    Args:
        length: waypoints of the encoded trajectory.
    """
    late = np.floor(delay * np.arange(length)).astype(np.intp)
    if now.time[-1] > schedule.levels.time[0]:  # where those that are done wait
        now = _followed_by(now, schedule.levels[:1])
    rows = len(now) + int(late[-1])
    place = np.clip(np.arange(rows)[:, None] - late, 0, len(now) - 1)  # [rows, length]
    moves = np.append(place[1:] > place[:-1], np.ones((1, length), dtype=bool), axis=0)
    steps = ddim(now)
    of_last = place == len(now) - 1
    moves &= ~of_last
    moves[-1] = True
    return StepTable(
        now[place],
        a=np.where(moves, steps.a[place], 1.0),
        b=np.where(moves, steps.b[place], 0.0),
        s=np.zeros((rows, length)),
    )


def _followed_by(levels: Levels, last: Levels) -> Levels:
    names = ("alpha", "sigma", "time", "input_scale")
    return Levels(*(np.append(getattr(levels, name), getattr(last, name)) for name in names))
