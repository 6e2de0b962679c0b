"""A scripted expert for ObstacleReach: it plans a path, follows it smoothly, and plans again if obstacles move."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from diffpolicy_envs.experts.reach_motion import Follower
from diffpolicy_envs.experts.reach_routes import View, choose_route
from diffpolicy_envs.reach import ObstacleReachEnv
from diffpolicy_envs.reach_geometry import signed_distance
from diffpolicy_envs.reach_layout import Layout
from diffpolicy_envs.reach_physics import offsets, velocities
from diffpolicy_envs.reach_variants import draw_layout
from diffpolicy_envs.reach_world import (
    AGENT_RADIUS_PX,
    CONTROL_RATE_HZ,
    FREE_DIRECTIONS,
    MAX_EPISODE_STEPS,
    MAX_OBSTACLES,
    SLOT_SIZE,
    VARIANTS,
    WORLD_SIZE_PX,
)

VERSION = 1
SPECS = {
    "action": ((2,), "float32"),
    "agent": ((2,), "float32"),
    "goal": ((2,), "float32"),
    "obstacles": ((MAX_OBSTACLES * SLOT_SIZE,), "float32"),
    "obstacle_mask": ((MAX_OBSTACLES,), "float32"),
    "obstacle_velocity": ((2 * MAX_OBSTACLES,), "float32"),
    "free_distance": ((FREE_DIRECTIONS,), "float32"),
    "tangents": ((4 * MAX_OBSTACLES,), "float32"),
}
# Values are rounded to multiples of these (px), which compress well. Actions and layouts are executed as stored.
GRID_PX = {
    "action": 0.125,
    "agent": 0.125,
    "obstacles": 0.125,
    "obstacle_velocity": 0.125,
    "free_distance": 1.0,
    "tangents": 1.0,
}
STEPS_PER_PLAN = 4  # if obstacles move; otherwise one plan is enough
# Recorded after success, because windows of actions that reach beyond the end are not trained on.
STEPS_AT_GOAL = 12
AROUND_GOAL_SHARE = 0.15  # share of the episodes that start off the path
_RANGES = (
    ("speed_px", 2.0, 20.0),
    ("clearance_px", 4.0, 30.0),
    ("moving_clearance_px", 4.0, 40.0),
    ("side_spread_px", 0.0, 100.0),
    ("recovery_share", 0.0, 1.0),
    ("least_clearance_px", 0.0, 20.0),
)


@dataclass(frozen=True)
class Settings:
    """The behaviour of the expert. Speeds are in px per env step of 0.1 s."""

    speed_px: float = 12.0
    clearance_px: float = 18.0  # kept if there is room
    moving_clearance_px: float = 24.0  # the same, if obstacles move
    side_spread_px: float = 6.0  # a path on the other side that is this much longer has probability 1 / (1 + e)
    recovery_share: float = 0.4  # share of episodes that start off the path, in motion
    least_clearance_px: float = 4.0  # an episode that comes closer is a failure
    variant: str | None = None  # one of `VARIANTS`; None for all of them in turn

    def __post_init__(self) -> None:
        for name, low, high in _RANGES:
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
                raise ValueError(f"{name} is {value!r}; expected a number, {low} to {high}")
        if self.variant not in (None, *VARIANTS):
            raise ValueError(f"variant is {self.variant!r}; expected None or one of {', '.join(VARIANTS)}")


@dataclass(frozen=True)
class Episode:
    """One recorded attempt: arrays of equal length with the keys of `SPECS`. Each state precedes its action."""

    arrays: dict[str, np.ndarray]
    attributes: dict[str, Any]  # parts of the layout that are not in the arrays, see `layout_of`


def demonstrate(seed: int, settings: Settings) -> Episode | None:
    """The episode of a seed, which depends on nothing else. None if the expert fails.

    Variants alternate, unless the settings name one. The sides of the symmetric ones alternate too, except in episodes
    that start off the path.
    """
    generator = np.random.default_rng([seed, 0])
    variant = VARIANTS[seed % len(VARIANTS)] if settings.variant is None else settings.variant
    layout = draw_layout(generator, variant)
    side = (1 if (seed // len(VARIANTS)) % 2 else -1) if variant == "symmetric" else 0
    is_recovery = generator.random() < settings.recovery_share
    if is_recovery:
        layout, side = _off_the_way(layout, settings, generator), 0
    return None if layout is None else record_episode(layout, variant, settings, generator, side, is_recovery)


def record_episode(
    layout: Layout, variant: str, settings: Settings, generator: np.random.Generator, side: int, is_recovery: bool
) -> Episode | None:
    """The expert's attempt at one layout; None if it fails.

    `side` is as in the env's info; 0 leaves the choice to the expert.
    """
    env = ObstacleReachEnv()
    observation, info = env.reset(options={"layout": given(layout)})
    follower = Follower(layout.agent, settings.speed_px)
    wanted_px = settings.moving_clearance_px if layout.speed.any() else settings.clearance_px
    rows: list[dict[str, np.ndarray]] = []
    steps_left, clearance, route = STEPS_AT_GOAL, info["clearance"], None
    while steps_left and len(rows) < MAX_EPISODE_STEPS:
        if not rows or (layout.speed.any() and len(rows) % STEPS_PER_PLAN == 0):
            view = _view(layout, follower.position, len(rows) / CONTROL_RATE_HZ)
            asked = 0 if rows else side
            route = choose_route(view, wanted_px, settings.side_spread_px, generator, asked, route)
            if route is None:
                return None
            follower.follow(route.way)
        action = _rounded("action", np.clip(follower.target(), 0.0, WORLD_SIZE_PX))
        rows.append({**observation, "action": action})
        observation, _, _, _, info = env.step(action)
        clearance = min(clearance, info["clearance"])
        steps_left -= bool(info["is_success"])
    if steps_left or clearance < (0.0 if is_recovery else settings.least_clearance_px):
        return None
    arrays = {key: _rounded(key, np.stack([row[key] for row in rows])).astype(np.float32) for key in SPECS}
    return Episode(arrays, _attributes(layout, variant, is_recovery, float(clearance), info["side"]))


def layout_of(first: dict[str, np.ndarray], attributes: dict[str, Any]) -> dict[str, Any]:
    """The `layout` option with which an episode was recorded, from its first row and its attributes."""
    count = int(first["obstacle_mask"].sum())
    slots = first["obstacles"].astype(np.float64).reshape(MAX_OBSTACLES, SLOT_SIZE)[:count]
    motion = {key: attributes[key] for key in ("travel", "speed", "phase", "velocity") if key in attributes}
    shapes = {"vertices": slots[:, :-1].reshape(count, -1, 2), "radius": slots[:, -1]}
    return {"agent": first["agent"], "goal": first["goal"], **shapes, **motion}


def given(layout: Layout) -> dict[str, Any]:
    """Convert a layout to the env's `layout` option."""
    shared = {"agent": layout.agent, "velocity": layout.velocity, "goal": layout.goal}
    parts = ("vertices", "radius", "travel", "speed", "phase")
    return {**shared, **{name: getattr(layout, name)[: layout.count] for name in parts}}


def _attributes(layout: Layout, variant: str, is_recovery: bool, clearance: float, side: int) -> dict[str, Any]:
    found: dict[str, Any] = {"variant": variant, "side": side, "clearance": round(clearance, 2)}
    if is_recovery:
        found["velocity"] = layout.velocity.tolist()
    if layout.speed.any():
        found |= {name: getattr(layout, name)[: layout.count].tolist() for name in ("travel", "speed", "phase")}
    return found


def _view(layout: Layout, agent: np.ndarray, time_s: float) -> View:
    """What can be seen now: where everything is and how fast it moves."""
    motion = layout.travel[: layout.count], layout.speed[: layout.count], layout.phase[: layout.count]
    vertices = layout.vertices[: layout.count] + offsets(time_s, *motion)[:, None]
    return View(agent, layout.goal, vertices, layout.radius[: layout.count], velocities(time_s, *motion))


def _off_the_way(layout: Layout, settings: Settings, generator: np.random.Generator) -> Layout | None:
    """The layout with the agent moving beside a path that the expert takes; None if no free position is found."""
    view = _view(layout, layout.agent, 0.0)
    route = choose_route(view, settings.clearance_px, settings.side_spread_px, generator)
    if route is None:
        return None
    way = route.way
    marks = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(way, axis=0).T))])
    for _ in range(20):
        is_around_goal = generator.random() < AROUND_GOAL_SHARE
        place = marks[-1] * (0.999 if is_around_goal else generator.uniform(0.0, 0.97))
        on_way, ahead = (np.array([np.interp(at, marks, way[:, axis]) for axis in (0, 1)]) for at in (place, place + 1))
        forward = (ahead - on_way) / max(math.dist(ahead, on_way), 1e-9)
        agent = _rounded("agent", on_way + generator.normal(0.0, 40.0 if is_around_goal else 18.0, 2))
        speed = generator.uniform(0.0, 10.0 * settings.speed_px)
        velocity = _rounded("agent", speed * forward + generator.normal(0.0, 12.0, 2))
        coming = agent + 0.1 * velocity
        rooms = [
            signed_distance(at[0], at[1], layout.vertices[slot], layout.radius[slot]) - AGENT_RADIUS_PX
            for slot in range(layout.count)
            for at in (agent, coming)
        ]
        within = (agent >= AGENT_RADIUS_PX).all() and (agent <= WORLD_SIZE_PX - AGENT_RADIUS_PX).all()
        if within and min(rooms) > 2.0 and math.dist(agent, layout.goal) > 25.0:
            return replace(layout, agent=agent, velocity=velocity)
    return None


def _rounded(key: str, values: np.ndarray) -> np.ndarray:
    return np.round(values / GRID_PX[key]) * GRID_PX[key] if key in GRID_PX else values
