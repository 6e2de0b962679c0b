"""Refines the last push by cross-entropy search over its offset, direction and length in the physics model.

A stroke is (offset along the surface in px, angle to the inward normal in rad, length in px from the surface).
"""

import math
from dataclasses import dataclass

import numpy as np

from diffpolicy_envs.compiled import compiled
from diffpolicy_envs.coverage import coverage
from diffpolicy_envs.experts.pusht_model import advance, new_world
from diffpolicy_envs.experts.pusht_motion import push_targets
from diffpolicy_envs.experts.pusht_routes import START_CLEARANCE_PX
from diffpolicy_envs.experts.pusht_table import APPROACH_PX, CENTER, misfit, rotated, to_world

DWELL_STEPS = 2
_POPULATION, _ELITES, _ROUNDS = 48, 8, 7
# The same draws every time, so that the expert's choice depends on the state alone.
_DRAWS = np.random.default_rng(0).standard_normal((_ROUNDS, _POPULATION, 3))
_STEP_COST = 0.03
_CLOSE_PX = 2.2  # below this misfit, the cost depends on the misfit; above it, the push has failed


@dataclass(frozen=True)
class Stroke:
    """One straight push in the block's frame, and the result that the model predicts."""

    contact: int
    offset_px: float
    angle_rad: float
    length_px: float
    cost: float = math.inf
    expected_coverage: float = 0.0


def refine_stroke(
    stroke: Stroke,
    point: np.ndarray,
    normal: np.ndarray,
    world: np.ndarray | None,
    pose: np.ndarray,
    speed_px: float,
    wanted_coverage: float,
) -> Stroke:
    """The stroke near `stroke` that best covers the goal.

    Args:
        point, normal: [2], the contact in the block's frame.
        world: the model's state if the agent is at the start now; None if it has yet to get there, which assumes that
            it then rests there.
        pose: [3], the block's pose.
    """
    mean = np.array([stroke.offset_px, stroke.angle_rad, stroke.length_px])
    spread = np.array([4.0 if world is None else 2.0, math.radians(8.0), 2.0 + 0.12 * stroke.length_px])
    ready = np.zeros(0) if world is None else world
    best, cost, covered = _cross_entropy(mean, spread, point, normal, ready, pose, speed_px, wanted_coverage, _DRAWS)
    return Stroke(stroke.contact, best[0], best[1], best[2], cost, covered)


@compiled
def start_and_heading(
    point: np.ndarray, normal: np.ndarray, offset_px: float, angle_rad: float, pose: np.ndarray
) -> tuple[float, float, float]:
    """The start of a stroke in the world (px), and its heading (rad)."""
    local_x = point[0] + START_CLEARANCE_PX * normal[0] - offset_px * normal[1]
    local_y = point[1] + START_CLEARANCE_PX * normal[1] + offset_px * normal[0]
    x, y = to_world(local_x, local_y, pose)
    heading_x, heading_y = rotated(-normal[0], -normal[1], angle_rad + pose[2])
    return x, y, math.atan2(heading_y, heading_x)


@compiled
def _cross_entropy(mean, spread, point, normal, ready, pose, speed_px, wanted_coverage, draws):
    """The best sample [3] of all rounds, its cost and its coverage."""
    best, best_cost, best_covered = mean.copy(), np.inf, 0.0
    samples, costs = np.empty((draws.shape[1], 3)), np.empty(draws.shape[1])
    for round_index in range(draws.shape[0]):
        for index in range(draws.shape[1]):
            samples[index] = mean + spread * draws[round_index, index]
            if index == 0:
                samples[index] = mean
            samples[index, 2] = max(samples[index, 2], 0.3)
            costs[index], covered = _cost(samples[index], point, normal, ready, pose, speed_px, wanted_coverage)
            if costs[index] < best_cost:
                best[:] = samples[index]
                best_cost, best_covered = costs[index], covered
        elites = np.argsort(costs)[:_ELITES]
        for axis in range(3):
            values = samples[:, axis][elites]
            mean[axis] = np.mean(values)
            spread[axis] = np.std(values) + 1e-3
    return best, best_cost, best_covered


@compiled
def _cost(sample, point, normal, ready, pose, speed_px, wanted_coverage):
    """The cost of one stroke, and the coverage after it."""
    start_x, start_y, heading = start_and_heading(point, normal, sample[0], sample[1], pose)
    targets = push_targets(start_x, start_y, heading, sample[2] + APPROACH_PX, speed_px, DWELL_STEPS)
    world = ready.copy() if len(ready) else new_world(start_x, start_y, pose)
    for step in range(len(targets)):
        advance(world, targets[step, 0], targets[step, 1])
    origin_x, origin_y = rotated(-CENTER[0], -CENTER[1], world[6])
    covered = coverage(world[4] + origin_x, world[5] + origin_y, world[6])
    off = misfit(world[4], world[5], world[6])
    duration = _STEP_COST * len(targets)
    if covered >= wanted_coverage:
        return duration, covered
    if off <= _CLOSE_PX:
        return duration + 0.5 + 0.8 * off, covered
    return duration + 10.0 + off, covered
