"""Chooses a route: how close to pass the obstacles, and on which side of the one in front."""

import math
from dataclasses import dataclass

import numpy as np

from diffpolicy_envs.experts.reach_planner import shortest_way, way_length
from diffpolicy_envs.reach_geometry import swept_distance
from diffpolicy_envs.reach_world import AGENT_RADIUS_PX, WORLD_SIZE_PX

CLEARANCE_STEPS = (1.0, 0.83, 0.67, 0.5, 0.33)  # shares of the wanted clearance to try
PX_PER_MISSING_PX = 3.0  # extra length accepted for one more px of clearance
AGENT_SPEED_PX_S = 110.0
PX_TO_SWITCH_SIDES = 60.0
LOOK_AHEAD_S = 1.2  # no further, because turning points of obstacles are unknown
_NO_BARRIER = np.full((2, 2), -1e6)


@dataclass(frozen=True)
class View:
    """The present moment in px: agent [2], goal [2], vertices [n, 4, 2], radius [n], velocity [n, 2] px/s."""

    agent: np.ndarray
    goal: np.ndarray
    vertices: np.ndarray
    radius: np.ndarray
    velocity: np.ndarray

    def when_met(self) -> np.ndarray:
        """Vertices [n, 4, 2] of each obstacle at the time when the agent gets there."""
        away = np.linalg.norm(self.vertices.mean(axis=1) - self.agent, axis=1)
        time_s = np.minimum(away / AGENT_SPEED_PX_S, LOOK_AHEAD_S)
        return self.vertices + (time_s[:, None] * self.velocity)[:, None]


@dataclass(frozen=True)
class Route:
    """A path `way` [k, 2] from agent to goal, and the side (1 or -1) on which it passes any obstacle in front."""

    way: np.ndarray
    front: int | None = None
    side: int = 0


def choose_route(
    view: View,
    clearance_px: float,
    spread_px: float,
    generator: np.random.Generator,
    side: int = 0,
    kept: Route | None = None,
) -> Route | None:
    """The agent's route, or None if there is no path.

    Args:
        spread_px: paths on either side of the obstacle in front are drawn by their lengths; paths that differ by less
            than this are about equally likely.
        side: 1 or -1 requires a side, as in the env's info.
        kept: the current route. Its side is kept unless the other one is much shorter, and nothing is drawn.
    """
    vertices = view.when_met()
    front = _in_front(view, vertices, clearance_px)
    if front is None:
        cost, way = _best(view, vertices, clearance_px, _NO_BARRIER)
        return Route(way) if math.isfinite(cost) else None
    # To pass on one side, put a barrier from the obstacle's middle far out to the other side.
    found = {way: _best(view, vertices, clearance_px, _barrier(view, vertices[front], -way)) for way in (-1, 1)}
    costs = {way: cost for way, (cost, _) in found.items()}
    if kept is not None and kept.front == front:
        costs[-kept.side] += PX_TO_SWITCH_SIDES
    chosen = side or min(costs, key=costs.__getitem__)
    if not math.isfinite(costs[chosen]):
        return None
    if not side and kept is None and spread_px > 0.0:
        is_other = generator.random() * (1.0 + math.exp((costs[-chosen] - costs[chosen]) / spread_px)) < 1.0
        chosen = -chosen if is_other else chosen
    return Route(found[chosen][1], front, chosen)


def _best(view: View, vertices: np.ndarray, clearance_px: float, barrier: np.ndarray) -> tuple[float, np.ndarray]:
    """(cost, path) of the best trade-off between a short path and clearance."""
    best = math.inf, np.empty((0, 2))
    for share in CLEARANCE_STEPS:
        missing_cost = PX_PER_MISSING_PX * (1.0 - share) * clearance_px
        if best[0] < missing_cost:
            break
        way = shortest_way(view.agent, view.goal, vertices, view.radius, share * clearance_px, barrier)
        cost = way_length(way) + missing_cost
        if cost < best[0]:
            best = cost, way
    return best


def _in_front(view: View, vertices: np.ndarray, clearance_px: float) -> int | None:
    """The first obstacle to which the straight path comes too close."""
    needed = AGENT_RADIUS_PX + clearance_px
    near = [
        (math.dist(vertices[slot].mean(axis=0), view.agent), slot)
        for slot in range(len(vertices))
        if swept_distance(view.agent, view.goal, vertices[slot], view.radius[slot] + needed, 0.0) < 0.0
    ]
    return min(near)[1] if near else None


def _barrier(view: View, vertices: np.ndarray, side: int) -> np.ndarray:
    """A line [2, 2] from the obstacle's middle to its `side`. 1 is the right of the path in a picture (y down)."""
    middle = 0.5 * (vertices.min(axis=0) + vertices.max(axis=0))
    forward = (view.goal - view.agent) / max(math.dist(view.goal, view.agent), 1e-9)
    return np.stack([middle, middle + side * 2.0 * WORLD_SIZE_PX * np.array([-forward[1], forward[0]])])
