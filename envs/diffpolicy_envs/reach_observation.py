"""Observations of ObstacleReach; see the table of `ObstacleReachEnv`."""

import numpy as np
from gymnasium import spaces

from diffpolicy_envs import reach_world as world
from diffpolicy_envs.reach_geometry import free_distances, tangent_points
from diffpolicy_envs.reach_layout import Layout
from diffpolicy_envs.reach_physics import velocities

# Obstacles placed by hand may extend this far out of the world.
_OBSTACLE_MARGIN_PX = 512.0
PIXELS_SIZE_PX = 96
STATE_SIZES = (2, 2, world.SLOT_SIZE * world.MAX_OBSTACLES, world.MAX_OBSTACLES)  # agent, goal, obstacles, mask


def observation_space() -> spaces.Dict:
    """The bounds of every part of an observation."""
    size, fastest = world.WORLD_SIZE_PX, world.MAX_OBSTACLE_SPEED_PX_S
    vertices = [-_OBSTACLE_MARGIN_PX] * (world.SLOT_SIZE - 1), [size + _OBSTACLE_MARGIN_PX] * (world.SLOT_SIZE - 1)
    low = np.array([*vertices[0], 0.0] * world.MAX_OBSTACLES, dtype=np.float32)
    high = np.array([*vertices[1], size] * world.MAX_OBSTACLES, dtype=np.float32)
    return spaces.Dict(
        {
            "agent": spaces.Box(0.0, size, (2,), np.float32),
            "goal": spaces.Box(0.0, size, (2,), np.float32),
            "obstacles": spaces.Box(low, high, dtype=np.float32),
            "obstacle_mask": spaces.Box(0.0, 1.0, (world.MAX_OBSTACLES,), np.float32),
            "obstacle_velocity": spaces.Box(-fastest, fastest, (2 * world.MAX_OBSTACLES,), np.float32),
            "free_distance": spaces.Box(0.0, world.FREE_RANGE_PX, (world.FREE_DIRECTIONS,), np.float32),
            "tangents": spaces.Box(0.0, size, (4 * world.MAX_OBSTACLES,), np.float32),
        }
    )


def observe(layout: Layout, agent: np.ndarray, vertices: np.ndarray, time_s: float) -> dict[str, np.ndarray]:
    """The observation `time_s` after reset, for the agent [2] px and the obstacles' vertices [slots, 4, 2] px."""
    slots = np.concatenate([vertices.reshape(world.MAX_OBSTACLES, -1), layout.radius[:, None]], axis=1)
    count, (x, y) = layout.count, agent
    shapes = vertices[:count], layout.radius[:count]
    free = free_distances(x, y, world.AGENT_RADIUS_PX, *shapes, world.FREE_DIRECTIONS, world.FREE_RANGE_PX)
    tangents = np.zeros((world.MAX_OBSTACLES, 2, 2), dtype=np.float32)
    tangents[:count] = tangent_points(x, y, world.AGENT_RADIUS_PX, *shapes, world.WORLD_SIZE_PX)
    moving = velocities(time_s, layout.travel, layout.speed, layout.phase)
    return {
        "agent": agent.astype(np.float32),
        "goal": layout.goal.astype(np.float32),
        "obstacles": slots.ravel().astype(np.float32),
        "obstacle_mask": layout.mask.astype(np.float32),
        "obstacle_velocity": moving.ravel().astype(np.float32),
        "free_distance": free.astype(np.float32),
        "tangents": tangents.ravel(),
    }


def pixels_space() -> spaces.Dict:
    """The bounds of an observation with pixels."""
    pixels = spaces.Box(0, 255, (PIXELS_SIZE_PX, PIXELS_SIZE_PX, 3), np.uint8)
    return spaces.Dict({"pixels": pixels, "agent": observation_space()["agent"]})


class PixelObserver:
    """Draws what an observation with pixels shows: goal, obstacles and agent, which keeps its colour in contact."""

    def __init__(self) -> None:
        from diffpolicy_envs.reach_render import ReachRenderer

        self._renderer = ReachRenderer(PIXELS_SIZE_PX)

    def observe(
        self, agent: np.ndarray, goal: np.ndarray, vertices: np.ndarray, radius: np.ndarray
    ) -> dict[str, np.ndarray]:
        """The observation of agent [2], goal [2] and the obstacles' vertices [n, 4, 2] and radius [n], all px."""
        return {"pixels": self._renderer.draw(agent, goal, vertices, radius), "agent": agent.astype(np.float32)}

    def observe_state(self, state: np.ndarray) -> dict[str, np.ndarray]:
        """The observation of stored agent, goal, obstacles and obstacle_mask, joined [64].

        Raises:
            ValueError: the state is not 64 finite numbers.
        """
        values = np.asarray(state, dtype=np.float64)
        if values.shape != (sum(STATE_SIZES),) or not np.isfinite(values).all():
            raise ValueError(f"observe_state: state is {state!r}; expected {sum(STATE_SIZES)} finite numbers")
        agent, goal, slots, mask = np.split(values, np.cumsum(STATE_SIZES)[:-1])
        used = slots.reshape(world.MAX_OBSTACLES, -1)[mask > 0.5]
        return self.observe(agent, goal, used[:, :-1].reshape(len(used), -1, 2), used[:, -1])
