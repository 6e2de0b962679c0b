"""Layouts: where agent, goal and obstacles are at the start of an episode, and how the obstacles move."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffpolicy_envs.reach_world import MAX_OBSTACLE_SPEED_PX_S, MAX_OBSTACLES, MAX_VERTICES, WORLD_SIZE_PX

_REQUIRED = ("agent", "goal")
# Per obstacle: name -> (shape of one, default).
_PER_OBSTACLE = {
    "vertices": ((MAX_VERTICES, 2), None),
    "radius": ((), 0.0),
    "travel": ((2,), 0.0),
    "speed": ((), 0.0),
    "phase": ((), 0.0),
}
_KEYS = (*_REQUIRED, "velocity", "mask", *_PER_OBSTACLE)


@dataclass(frozen=True)
class Layout:
    """Everything that an episode depends on besides the actions; lengths in px, float64.

    Obstacles fill the first of six slots; the others are zero. See `reach_geometry` for their shape and
    `reach_physics.offsets` for their motion. `vertices` are those at the start.
    """

    agent: np.ndarray  # [2]
    velocity: np.ndarray  # [2] px/s
    goal: np.ndarray  # [2]
    vertices: np.ndarray  # [6, 4, 2]
    radius: np.ndarray  # [6]
    travel: np.ndarray  # [6, 2]
    speed: np.ndarray  # [6] px/s, never exceeded
    phase: np.ndarray  # [6] in [0, 2)
    mask: np.ndarray  # [6] bool, used slots

    @property
    def count(self) -> int:
        return int(self.mask.sum())


def layout_from(given: Mapping[str, Any]) -> Layout:
    """Build a layout placed by hand.

    Args:
        given: agent [2] and goal [2]. Optionally velocity [2] and, for n <= 6 obstacles, vertices [n, 4, 2] with radius
            [n], travel [n, 2], speed [n], phase [n] and mask [n] (only obstacles where it is true are kept).

    Raises:
        ValueError: keys are unknown or missing, shapes are wrong, numbers are not finite, agent or goal is outside the
            world, vertices do not go around a convex shape in order, a radius is negative, or a speed is below 0 or
            above 200 px/s.
    """
    unknown, missing = sorted(set(given) - set(_KEYS)), sorted(set(_REQUIRED) - set(given))
    if unknown or missing:
        raise ValueError(f"layout: unknown keys {unknown}, missing keys {missing}; expected {list(_KEYS)}")
    agent, goal = (_position(name, given[name]) for name in _REQUIRED)
    velocity = _numbers("velocity", given.get("velocity", (0.0, 0.0)), (2,))
    obstacles = _obstacles(given)
    count = len(obstacles["radius"])
    mask = np.arange(MAX_OBSTACLES) < count
    padded = {name: np.zeros((MAX_OBSTACLES, *shape)) for name, (shape, _) in _PER_OBSTACLE.items()}
    for name, values in obstacles.items():
        padded[name][:count] = values
    return Layout(agent, velocity, goal, mask=mask, **padded)


def _obstacles(given: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays of the obstacles, without those that the mask leaves out."""
    count = len(given.get("vertices", ()))
    if count > MAX_OBSTACLES:
        raise ValueError(f"layout: {count} obstacles; expected at most {MAX_OBSTACLES}")
    arrays = {}
    for name, (shape, default) in _PER_OBSTACLE.items():
        value = given.get(name, np.zeros((count, *shape)) if default is not None or not count else None)
        arrays[name] = _numbers(name, value if count else np.zeros((0, *shape)), (count, *shape))
    kept = np.asarray(given.get("mask", np.ones(count)), dtype=bool)
    if kept.shape != (count,):
        raise ValueError(f"layout: mask has shape {kept.shape}; expected ({count},), one number per obstacle")
    arrays = {name: value[kept] for name, value in arrays.items()}
    for name in ("radius", "speed"):
        if (arrays[name] < 0.0).any():
            raise ValueError(f"layout: {name} is {arrays[name].tolist()}; expected no negative number")
    if (arrays["speed"] > MAX_OBSTACLE_SPEED_PX_S).any():
        raise ValueError(
            f"layout: speed is {arrays['speed'].tolist()}; expected at most {MAX_OBSTACLE_SPEED_PX_S:g} px/s"
        )
    for slot, vertices in enumerate(arrays["vertices"]):
        if not _is_convex(vertices):
            raise ValueError(
                f"layout: vertices of obstacle {slot} are {vertices.tolist()}; expected the corners of a convex shape "
                "in order around it, the last one repeated if there are fewer than 4"
            )
    return arrays


def _is_convex(vertices: np.ndarray) -> bool:
    """Whether [4, 2] go around their hull once, without left and right turns together and without crossing."""
    edges = np.roll(vertices, -1, axis=0) - vertices
    edges = edges[np.abs(edges).max(axis=1) > 0.0]
    after = np.roll(edges, -1, axis=0)
    turns = edges[:, 0] * after[:, 1] - edges[:, 1] * after[:, 0]
    # A crossed quadrilateral turns left twice and right twice.
    return bool((turns >= -1e-9).all() or (turns <= 1e-9).all())


def _position(name: str, value: Any) -> np.ndarray:
    position = _numbers(name, value, (2,))
    if (position < 0.0).any() or (position > WORLD_SIZE_PX).any():
        raise ValueError(f"layout: {name} is {position.tolist()}; expected a position in [0, {WORLD_SIZE_PX:g}] px")
    return position


def _numbers(name: str, value: Any, shape: tuple[int, ...]) -> np.ndarray:
    try:
        numbers = np.array(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"layout: {name} is {value!r}; expected numbers of shape {shape}") from error
    if numbers.shape != shape:
        raise ValueError(f"layout: {name} has shape {numbers.shape}; expected {shape}")
    if not np.isfinite(numbers).all():
        raise ValueError(f"layout: {name} is {numbers.tolist()}; expected finite numbers")
    return numbers
