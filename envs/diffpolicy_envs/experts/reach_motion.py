"""Converts paths to actions: smooth motion at bounded speed, with targets that lead the plant."""

import math

import numpy as np

from diffpolicy_envs.reach_world import CONTROL_RATE_HZ, POSITION_GAIN, VELOCITY_GAIN

ACCELERATION_PX = 3.0  # per env step squared
_WEIGHTS = np.array([1.0, 2.0, 3.0, 2.0, 1.0]) / 9.0  # of a position and its neighbours; this rounds corners


class Follower:
    """Follows paths, one position per env step, and computes the target that takes the agent to the next position.

    The plant is x'' = gain (target - x) - drag x'. Solved for the target: x + drag / gain x' + x'' / gain.
    """

    def __init__(self, position: np.ndarray, speed_px: float) -> None:
        self._speed_px = speed_px
        self._places = [position] * 3  # before, at and after the start; the agent starts at rest
        self._ahead: list[np.ndarray] = []
        self._pace_px = 0.0  # current pace, per step

    @property
    def position(self) -> np.ndarray:
        """The position [2] where the next path must start."""
        return self._places[-1]

    def follow(self, way: np.ndarray) -> None:
        """Follow the path `way` [k, 2] from `position`, at the current pace."""
        marks = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(way, axis=0).T))])
        gone, pace, travelled = 0.0, self._pace_px, []
        while gone < marks[-1] - 1e-9:
            left = marks[-1] - gone
            # At pace p, the agent stops within p^2 / 2a + p / 2 px.
            braking = math.sqrt(2.0 * ACCELERATION_PX * left + 0.25 * ACCELERATION_PX**2) - 0.5 * ACCELERATION_PX
            pace = max(min(pace + ACCELERATION_PX, self._speed_px, braking), 0.5)
            gone = min(gone + pace, marks[-1])
            travelled.append(gone)
        self._ahead = [np.array([np.interp(at, marks, way[:, axis]) for axis in (0, 1)]) for at in travelled]

    def target(self) -> np.ndarray:
        """The target [2] px of the next step. At the end of the path, the agent comes to rest."""
        place = self._ahead.pop(0) if self._ahead else self._places[-1]
        self._pace_px = math.dist(place, self._places[-1])
        self._places.append(place)
        coming = [self._places[-1], *self._ahead[:4]]
        known = np.array([*self._places[:-1], *coming, *[coming[-1]] * (5 - len(coming))])
        now = len(self._places) - 2
        first = max(now - 3, 0)
        padded = np.concatenate([np.repeat(known[first : first + 1], 6, axis=0), known[first : now + 5]])
        smooth = np.stack([np.convolve(padded[:, axis], _WEIGHTS, mode="valid") for axis in (0, 1)], axis=1)
        middle = len(smooth) - 3  # smooth[middle] is where the step starts
        previous, start, end, following = smooth[middle - 1 : middle + 3]
        rate = CONTROL_RATE_HZ
        velocity, acceleration = (end - start) * rate, 0.5 * (following - end - start + previous) * rate**2
        return 0.5 * (start + end) + (VELOCITY_GAIN * velocity + acceleration) / POSITION_GAIN
