"""Push-T's physics as one compiled function: only what pymunk does when the agent touches the block.

This is a port of one Chipmunk step for this world: a kinematic circle (the agent) against two rectangles of one free
body (the block), without friction, in a space whose damping of 0 stops the block at every step. Walls are left out, so
plans near them are wrong; the expert plans again after every push. The order within a step is that of Chipmunk:
integrate positions, find contacts, clear velocities, apply the impulses of the last step, iterate the impulse solver.

A `world` is a float64 array, with lengths in px, times in s and angles in rad:

    0-3    agent x, y and its velocity          4-6    block: centre of gravity x, y, angle
    7-9    block velocity x, y, angle           10-12  velocity that corrects penetration, used once
    13-14  impulse of the bar and the stem      15-16  1 if that rectangle was touched in the last step
"""

import math

import numpy as np

from diffpolicy_envs.compiled import compiled
from diffpolicy_envs.pusht_world import (
    AGENT_RADIUS_PX,
    BAR_BOX,
    BLOCK_CENTER_OF_GRAVITY,
    BLOCK_MASS,
    BLOCK_MOMENT,
    POSITION_GAIN,
    STEM_BOX,
    SUBSTEP_S,
    SUBSTEPS_PER_ACTION,
    VELOCITY_GAIN,
)

_WORLD_LENGTH = 17
_CENTER_X, _CENTER_Y = BLOCK_CENTER_OF_GRAVITY
_ITERATIONS = 10
_ALLOWED_OVERLAP_PX = 0.1
_CORRECTION_RATE = (1.0 - 0.9 ** (60.0 * SUBSTEP_S)) / SUBSTEP_S
# No corner is further from the centre of gravity than 76.2 px, so beyond this the agent cannot touch the block.
_REACH_SQUARED_PX2 = (77.0 + AGENT_RADIUS_PX) ** 2


@compiled
def new_world(agent_x: float, agent_y: float, pose: np.ndarray) -> np.ndarray:
    """A world with the agent at rest. `pose` [3] is the block's centre of gravity (px) and angle (rad)."""
    world = np.zeros(_WORLD_LENGTH)
    world[0], world[1] = agent_x, agent_y
    world[4:7] = pose
    return world


@compiled
def advance(world: np.ndarray, target_x: float, target_y: float) -> None:
    """Run one action, 0.1 s, in place. The task's PD law pulls the agent to the target (px)."""
    for _ in range(SUBSTEPS_PER_ACTION):
        world[2] += (POSITION_GAIN * (target_x - world[0]) - VELOCITY_GAIN * world[2]) * SUBSTEP_S
        world[3] += (POSITION_GAIN * (target_y - world[1]) - VELOCITY_GAIN * world[3]) * SUBSTEP_S
        physics_step(world)


@compiled
def physics_step(world: np.ndarray) -> None:
    """Run one step of 0.01 s in place, at the agent's current velocity."""
    world[0] += world[2] * SUBSTEP_S
    world[1] += world[3] * SUBSTEP_S
    for axis in range(3):
        world[4 + axis] += (world[7 + axis] + world[10 + axis]) * SUBSTEP_S
        world[7 + axis] = 0.0
        world[10 + axis] = 0.0
    if (world[0] - world[4]) ** 2 + (world[1] - world[5]) ** 2 > _REACH_SQUARED_PX2:
        world[13:17] = 0.0
        return
    # Per contact: normal x, y (agent to block), arm x, y (centre of gravity to contact), effective mass, correction.
    contacts = np.empty((2, 6))
    slots = np.empty(2, dtype=np.int64)
    count = 0
    for slot in range(2):
        if _find_contact(world, slot, contacts[count]):
            slots[count] = slot
            count += 1
        else:
            world[13 + slot] = 0.0
            world[15 + slot] = 0.0
    _solve(world, contacts, slots, count)


@compiled
def outward(x: float, y: float, box: tuple[float, float, float, float]) -> tuple[float, float, float]:
    """Signed distance (px) from a box to a point in the box's frame, and the unit vector from the box to the point."""
    near_x, near_y = min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3])
    distance = math.hypot(x - near_x, y - near_y)
    if distance > 0.0:
        return distance, (x - near_x) / distance, (y - near_y) / distance
    left, right, top, bottom = x - box[0], box[2] - x, y - box[1], box[3] - y
    nearest = min(left, right, top, bottom)
    if nearest == left:
        return -left, -1.0, 0.0
    if nearest == right:
        return -right, 1.0, 0.0
    if nearest == top:
        return -top, 0.0, -1.0
    return -bottom, 0.0, 1.0


@compiled
def _find_contact(world, slot, contact):
    """Fill `contact` and return True if the agent touches rectangle `slot` (0 the bar, 1 the stem)."""
    cosine, sine = math.cos(world[6]), math.sin(world[6])
    offset_x, offset_y = world[0] - world[4], world[1] - world[5]
    x = cosine * offset_x + sine * offset_y + _CENTER_X
    y = -sine * offset_x + cosine * offset_y + _CENTER_Y
    distance, away_x, away_y = outward(x, y, BAR_BOX if slot == 0 else STEM_BOX)
    overlap = AGENT_RADIUS_PX - distance
    if overlap < 0.0:
        return False
    local_x, local_y = x - away_x * distance - _CENTER_X, y - away_y * distance - _CENTER_Y
    contact[0] = -(cosine * away_x - sine * away_y)
    contact[1] = -(sine * away_x + cosine * away_y)
    contact[2] = cosine * local_x - sine * local_y
    contact[3] = sine * local_x + cosine * local_y
    lever = contact[2] * contact[1] - contact[3] * contact[0]
    contact[4] = 1.0 / (1.0 / BLOCK_MASS + lever * lever / BLOCK_MOMENT)
    contact[5] = _CORRECTION_RATE * max(overlap - _ALLOWED_OVERLAP_PX, 0.0)
    return True


@compiled
def _solve(world, contacts, slots, count):
    """Chipmunk's impulse solver: warm start, then Gauss-Seidel with accumulated impulses that can only push."""
    for index in range(count):
        if world[15 + slots[index]] > 0.0:
            _push(world, 7, contacts[index], world[13 + slots[index]])
        world[15 + slots[index]] = 1.0
    corrected = np.zeros(2)
    for _ in range(1 if count == 1 else _ITERATIONS):
        for index in range(count):
            contact, slot = contacts[index], slots[index]
            closing = _speed(world, 10, contact)
            impulse = max(corrected[index] + (contact[5] - closing) * contact[4], 0.0)
            _push(world, 10, contact, impulse - corrected[index])
            corrected[index] = impulse
            closing = _speed(world, 7, contact) - world[2] * contact[0] - world[3] * contact[1]
            impulse = max(world[13 + slot] - closing * contact[4], 0.0)
            _push(world, 7, contact, impulse - world[13 + slot])
            world[13 + slot] = impulse


@compiled
def _speed(world, first, contact):
    """Speed along the normal (px/s) of the block's contact point, for the velocity at world[first : first + 3]."""
    velocity_x = world[first] - world[first + 2] * contact[3]
    velocity_y = world[first + 1] + world[first + 2] * contact[2]
    return velocity_x * contact[0] + velocity_y * contact[1]


@compiled
def _push(world, first, contact, impulse):
    """Apply an impulse along the normal to the velocity at world[first : first + 3]."""
    world[first] += impulse * contact[0] / BLOCK_MASS
    world[first + 1] += impulse * contact[1] / BLOCK_MASS
    world[first + 2] += impulse * (contact[2] * contact[1] - contact[3] * contact[0]) / BLOCK_MOMENT
