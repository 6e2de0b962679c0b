"""A table of what straight pushes do to the block, simulated once for every contact, direction and length.

Without walls, a push has the same effect everywhere in the block's frame, because the block stops as soon as it is not
pushed. So 9 directions x 21 lengths at each contact make a table for the search. A pose is the block's centre of
gravity (px) and angle (rad). A change of pose in the table is in the frame of the block before the push.
"""

import functools
import math
from dataclasses import dataclass

import numpy as np

from diffpolicy_envs.compiled import compiled
from diffpolicy_envs.experts import pusht_routes as routes
from diffpolicy_envs.experts.pusht_model import new_world, physics_step
from diffpolicy_envs.pusht_world import AGENT_RADIUS_PX, BLOCK_CENTER_OF_GRAVITY, GOAL_POSE, SUBSTEP_S

DIRECTIONS_RAD = np.radians([0.0, 10.0, -10.0, 20.0, -20.0, 35.0, -35.0, 50.0, -50.0])
PUSH_LENGTHS_PX = np.array([2, 4, 6, 8, 11, 14, 18, 22, 27, 32, 38, 45, 53, 62, 72, 84, 98, 114, 133, 160, 190.0])
APPROACH_PX = routes.START_CLEARANCE_PX - AGENT_RADIUS_PX  # travel before the agent touches the block
CENTER = np.array(BLOCK_CENTER_OF_GRAVITY)
# The block's radius of gyration: converts an angle to px, as the RMS over the block's points.
GYRATION_PX = 44.0
_TABLE_SPEED_PX_S = 50.0


@dataclass(frozen=True)
class PushTable:
    """All pushes: n contacts, d directions, l lengths; distances in px."""

    points: np.ndarray  # [n, 2] on the outline, block frame
    normals: np.ndarray  # [n, 2] outward
    starts: np.ndarray  # [n, 2] the agent's position before the push
    changes: np.ndarray  # [n, d, l, 3] changes of pose
    end_contacts: np.ndarray  # [n, d, l] the contact nearest to where the push ends
    between: np.ndarray  # [n, n] length of the path from start to start
    nodes: np.ndarray  # [m, 2] waypoints around the block
    node_to_node: np.ndarray  # [m, m]
    node_to_start: np.ndarray  # [m, n]


@functools.cache
def push_table() -> PushTable:
    """The table, built once per process (about 0.1 s)."""
    points, normals = routes.outline_contacts()
    starts = points + routes.START_CLEARANCE_PX * normals
    nodes = routes.corner_nodes()
    node_to_node = routes.visible_distances(nodes, nodes)
    node_to_start = routes.visible_distances(nodes, starts)
    usable = np.ones(len(nodes), dtype=np.bool_)
    between = np.array(
        [routes.routes_from(start, starts, nodes, node_to_node, node_to_start, usable)[0] for start in starts]
    )
    changes, ends = _push_everywhere(starts, normals, DIRECTIONS_RAD, PUSH_LENGTHS_PX)
    gaps = np.linalg.norm(ends[..., None, :] - starts, axis=-1)  # [n, d, l, n]
    return PushTable(points, normals, starts, changes, gaps.argmin(-1), between, nodes, node_to_node, node_to_start)


@compiled
def _push_everywhere(starts, normals, directions, lengths):
    """Changes of pose [n, d, l, 3] and final positions of the agent [n, d, l, 2], both in the block's frame."""
    shape = (len(starts), len(directions), len(lengths))
    changes, ends = np.zeros((shape[0], shape[1], shape[2], 3)), np.zeros((shape[0], shape[1], shape[2], 2))
    for contact in range(shape[0]):
        for turn in range(shape[1]):
            world = new_world(starts[contact, 0], starts[contact, 1], np.array([CENTER[0], CENTER[1], 0.0]))
            heading_x, heading_y = rotated(-normals[contact, 0], -normals[contact, 1], directions[turn])
            world[2], world[3] = heading_x * _TABLE_SPEED_PX_S, heading_y * _TABLE_SPEED_PX_S
            travelled = 0.0
            for index in range(shape[2]):
                while travelled < lengths[index] + APPROACH_PX:
                    physics_step(world)
                    travelled += _TABLE_SPEED_PX_S * SUBSTEP_S
                change, end = changes[contact, turn, index], ends[contact, turn, index]
                change[0], change[1], change[2] = world[4] - CENTER[0], world[5] - CENTER[1], world[6]
                end[0], end[1] = to_block(world[0], world[1], world[4:7])
    return changes, ends


@compiled
def rotated(x: float, y: float, angle: float) -> tuple[float, float]:
    """(x, y) turned by `angle` rad."""
    cosine, sine = math.cos(angle), math.sin(angle)
    return cosine * x - sine * y, sine * x + cosine * y


@compiled
def to_block(x: float, y: float, pose: np.ndarray) -> tuple[float, float]:
    """Convert a world point to the frame of the block at `pose` [3]."""
    local_x, local_y = rotated(x - pose[0], y - pose[1], -pose[2])
    return local_x + CENTER[0], local_y + CENTER[1]


@compiled
def to_world(x: float, y: float, pose: np.ndarray) -> tuple[float, float]:
    """Convert a point in the block's frame to the world."""
    world_x, world_y = rotated(x - CENTER[0], y - CENTER[1], pose[2])
    return world_x + pose[0], world_y + pose[1]


def pose_of_state(state: np.ndarray) -> np.ndarray:
    """The pose [3] of the centre of gravity for an env state [5] (agent x, y, block origin x, y, angle)."""
    offset = rotated(CENTER[0], CENTER[1], state[4])
    return np.array([state[2] + offset[0], state[3] + offset[1], state[4]])


GOAL = pose_of_state(np.array([0.0, 0.0, *GOAL_POSE]))
_GOAL_X, _GOAL_Y, _GOAL_ANGLE = GOAL


@compiled
def misfit(x: float, y: float, angle: float) -> float:
    """RMS distance (px) of the block's points from where they are at the goal, with the centre of gravity at (x, y)."""
    turn = 2.0 * GYRATION_PX * GYRATION_PX * (1.0 - math.cos(angle - _GOAL_ANGLE))
    return math.sqrt((x - _GOAL_X) ** 2 + (y - _GOAL_Y) ** 2 + turn)
