"""A pyramid of levels: every waypoint is denoised by the same steps, and starts later than the one before it.

Near waypoints are clean first, and far ones are denoised given almost clean near ones (Chen et al. 2024, section 3.3).
Row m takes waypoint i from the level k(m, i) = clip(m - floor(delay i), 0, last). A waypoint waits at the first level
before its turn and at the last one after it, until all leave that one together. It is for networks that know a level
for each waypoint.
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from diffpolicy.diffusion.samplers.settings import SamplerConfig
from diffpolicy.diffusion.samplers.table import StepTable
from diffpolicy.diffusion.schedule import Levels, Schedule
from diffpolicy.system.schema import Range


@dataclass
class PyramidConfig(SamplerConfig):
    """Settings of `pyramid`: `delay`, the rows by which a waypoint is behind the one before it; 0 is DDIM."""

    name: str = "pyramid"
    delay: Annotated[float, Range(least=0.0, most=1000.0)] = 0.5


def to_lowest(now: Levels, schedule: Schedule) -> Levels:
    """These levels, and the lowest trained one after them, where waypoints that are almost clean wait."""
    lowest = schedule.levels[:1]
    if now.time[-1] == lowest.time[0]:
        return now
    names = ("alpha", "sigma", "time", "input_scale")
    return Levels(*(np.append(getattr(now, name), getattr(lowest, name)) for name in names))


def pyramid(steps: StepTable, length: int, delay: float) -> StepTable:
    """The rows of `steps`, which look neither back nor add noise, with a waypoint `delay` rows behind the one before.

    Args:
        length: waypoints of the encoded trajectory.
    """
    last = len(steps) - 1
    late = np.floor(delay * np.arange(length)).astype(np.intp)
    rows = len(steps) + int(late[-1])
    place = np.clip(np.arange(rows)[:, None] - late, 0, last)  # [rows, length]
    moves = np.append(place[1:] > place[:-1], np.ones((1, length), dtype=bool), axis=0)
    return StepTable(
        steps.now[place],
        a=np.where(moves, steps.a[place], 1.0),
        b=np.where(moves, steps.b[place], 0.0),
        s=np.zeros((rows, length)),
    )
