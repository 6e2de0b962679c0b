"""Reads the motion of the robots and the obstacles around them from an env's info."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from diffpolicy.constraints.planar.obstacles import Obstacles
from diffpolicy.constraints.plant import State
from diffpolicy.safety.surroundings import Surroundings

OBSTACLE_KEYS = ("vertices", "radius", "speed_bound", "mask")


class Readings:
    """The latest info of each env of a vector env.

    These keys are read if present: `time_s` [num_envs], `agent_position` and `agent_velocity` [num_envs, A], and
    `obstacles`, a mapping of vertices [num_envs, M, V, 2], radius, speed_bound and mask [num_envs, M].
    """

    def __init__(self) -> None:
        self._latest: dict[str, npt.NDArray[Any]] = {}

    def begin(self, info: Mapping[str, Any], mask: npt.NDArray[np.bool_]) -> None:
        """Start new episodes in the envs of `mask` [num_envs]: their clocks restart."""
        if "time_s" in self._latest:
            self._latest["time_s"][mask] = -np.inf
        self.update(info, mask)

    def update(self, info: Mapping[str, Any], mask: npt.NDArray[np.bool_]) -> None:
        """Take in what the envs of `mask` [num_envs] report.

        Clocks never run backwards: while an env that has ended and been reset waits for its next episode, its clock
        stops.
        """
        found = {key: info[key] for key in ("time_s", "agent_position", "agent_velocity") if key in info}
        found |= {key: info["obstacles"][key] for key in OBSTACLE_KEYS if "obstacles" in info}
        for key, values in found.items():
            if key not in self._latest:
                self._latest[key] = np.array(values)
            later = np.maximum(self._latest[key], values) if key == "time_s" else values
            self._latest[key][mask] = later[mask]

    @property
    def surroundings(self) -> Surroundings:
        """Everything that a controller with safety is told."""
        return Surroundings(self.plant_state, self.obstacles, self.time_s)

    @property
    def plant_state(self) -> State | None:
        """The state of all robots; None if the env does not report it."""
        if "agent_position" not in self._latest or "agent_velocity" not in self._latest:
            return None
        return State(*(torch.from_numpy(self._latest[f"agent_{name}"].copy()) for name in ("position", "velocity")))

    @property
    def time_s(self) -> npt.NDArray[np.float64] | None:
        """The clock of each env; None if the env does not report it."""
        return self._latest["time_s"].copy() if "time_s" in self._latest else None

    @property
    def obstacles(self) -> Obstacles | None:
        """The obstacles around all robots; None if the env does not report them."""
        if "mask" not in self._latest:
            return None
        return Obstacles(*(torch.from_numpy(self._latest[key].copy()) for key in OBSTACLE_KEYS))
