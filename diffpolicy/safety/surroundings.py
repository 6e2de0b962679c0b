"""What is measured around the robots at one tick."""

from dataclasses import dataclass

import numpy.typing as npt

from diffpolicy.constraints.planar.obstacles import Obstacles
from diffpolicy.constraints.plant import State


@dataclass(frozen=True)
class Surroundings:
    """What a controller with safety is told at every tick besides the observation that the policy sees.

    Attributes:
        plant_state: the measured position and velocity [B, A] of the robots; NaN if none was received. May be None if
            no constraint acts on the motion, except in the first tick of an episode.
        obstacles: all obstacles at this tick. Robots do not avoid what is not reported. None means there are none.
        time_s: the time of this tick, one number or [B]. None means one period after the last tick.
    """

    plant_state: State | None = None
    obstacles: Obstacles | None = None
    time_s: npt.ArrayLike | None = None


def given(surroundings: Surroundings | None) -> Surroundings:
    """What was given; nothing measured if None. Raises ValueError if it is something else."""
    if surroundings is None:
        return Surroundings()
    if not isinstance(surroundings, Surroundings):  # pyright: ignore[reportUnnecessaryIsInstance]
        kind = type(surroundings).__name__
        raise ValueError(f"surroundings: is a {kind}, expected Surroundings(plant_state, ...)")
    return surroundings
