"""What is measured around the robots at one tick."""

from dataclasses import dataclass

import numpy.typing as npt

from diffpolicy.constraints.planar.obstacles import Obstacles
from diffpolicy.constraints.plant import State


@dataclass(frozen=True)
class Surroundings:
    """What a controller with safety is told at every tick, besides the observation that the policy sees.

    Attributes:
        plant_state: measured position and velocity [B, A] of the robots; NaN where none was received. It may be None
            where no constraint acts on the motion, except in the first tick of an episode.
        obstacles: everything that is there now; what is not reported is not kept clear of. None: there are none.
        time_s: when this tick is, one number or [B]. None: a period after the last.
    """

    plant_state: State | None = None
    obstacles: Obstacles | None = None
    time_s: npt.ArrayLike | None = None
