"""ObstacleReach's physics, compiled: Push-T's plant, obstacles that patrol, and exact clearances.

The agent is kinematic and passes through obstacles: contact is measured, and there is nothing to solve. That is why
this does not use a physics engine, which would take five times as long per step and report contacts only up to its own
tolerance.
"""

import math

import numpy as np

from diffpolicy_envs.compiled import compiled
from diffpolicy_envs.reach_geometry import swept_distance
from diffpolicy_envs.reach_world import (
    AGENT_RADIUS_PX,
    POSITION_GAIN,
    REST_SPEED_PX_S,
    SUBSTEP_S,
    SUBSTEPS_PER_ACTION,
    VELOCITY_GAIN,
)


@compiled
def offsets(time_s: float, travel: np.ndarray, speed: np.ndarray, phase: np.ndarray) -> np.ndarray:
    """How far each obstacle has moved since time 0, [n, 2] px.

    An obstacle moves back and forth along `travel` [n, 2] px at `speed` [n] px/s. `phase` [n] is its position in the
    round trip at time 0: 0 at one end, 1 at the other end, 2 back again.
    """
    moved = np.zeros((len(speed), 2))
    for slot in range(len(speed)):
        length = math.hypot(travel[slot, 0], travel[slot, 1])
        if length > 0.0 and speed[slot] > 0.0:
            share = _to_and_fro(phase[slot] + time_s * speed[slot] / length) - _to_and_fro(phase[slot])
            moved[slot, 0] = share * travel[slot, 0]
            moved[slot, 1] = share * travel[slot, 1]
    return moved


@compiled
def velocities(time_s: float, travel: np.ndarray, speed: np.ndarray, phase: np.ndarray) -> np.ndarray:
    """The velocity of each obstacle, [n, 2] px/s. At a turning point it is the velocity after the turn."""
    moving = np.zeros((len(speed), 2))
    for slot in range(len(speed)):
        length = math.hypot(travel[slot, 0], travel[slot, 1])
        if length > 0.0 and speed[slot] > 0.0:
            is_out = (phase[slot] + time_s * speed[slot] / length) % 2.0 < 1.0
            rate = (speed[slot] if is_out else -speed[slot]) / length
            moving[slot, 0], moving[slot, 1] = rate * travel[slot, 0], rate * travel[slot, 1]
    return moving


@compiled
def _to_and_fro(trips: float) -> float:
    """0 at even numbers, 1 at odd numbers, linear in between."""
    rest = trips % 2.0
    return rest if rest <= 1.0 else 2.0 - rest


@compiled
def _move(state: np.ndarray, target_x: float, target_y: float) -> None:
    """Run one sub-step of the PD control by semi-implicit Euler, in place."""
    state[2] += (POSITION_GAIN * (target_x - state[0]) - VELOCITY_GAIN * state[2]) * SUBSTEP_S
    state[3] += (POSITION_GAIN * (target_y - state[1]) - VELOCITY_GAIN * state[3]) * SUBSTEP_S
    state[0] += state[2] * SUBSTEP_S
    state[1] += state[3] * SUBSTEP_S


@compiled
def advance(
    state: np.ndarray,
    target_x: float,
    target_y: float,
    time_s: float,
    vertices: np.ndarray,
    radius: np.ndarray,
    travel: np.ndarray,
    speed: np.ndarray,
    phase: np.ndarray,
) -> tuple[float, int, int]:
    """Run one action, 0.1 s, on the agent's `state` [4] (x, y, velocity), in place.

    The obstacles are given as at time 0: vertices [n, 4, 2], radius [n]. Returns the least clearance (px) during the
    action (inf without obstacles), the number of sub-steps in contact, and of those with the agent at rest.
    """
    clearance = np.inf
    contacts, contacts_at_rest = 0, 0
    before = offsets(time_s, travel, speed, phase)
    start, end = np.empty(2), np.empty(2)
    for substep in range(SUBSTEPS_PER_ACTION):
        old_x, old_y = state[0], state[1]
        _move(state, target_x, target_y)
        after = offsets(time_s + (substep + 1) * SUBSTEP_S, travel, speed, phase)
        least = np.inf
        for slot in range(len(radius)):
            start[0], start[1] = old_x - before[slot, 0], old_y - before[slot, 1]
            end[0], end[1] = state[0] - after[slot, 0], state[1] - after[slot, 1]
            below = max(min(clearance, least), 0.0)  # a larger distance changes no result
            reach = radius[slot] + AGENT_RADIUS_PX
            least = min(least, swept_distance(start, end, vertices[slot], reach, below))
        clearance = min(clearance, least)
        if least < 0.0:
            contacts += 1
            if math.hypot(state[2], state[3]) < REST_SPEED_PX_S:
                contacts_at_rest += 1
        before = after
    return clearance, contacts, contacts_at_rest
