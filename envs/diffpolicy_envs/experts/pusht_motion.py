"""Converts paths to actions: one target position (px) per env step, with smooth acceleration and braking."""

import math

import numpy as np

from diffpolicy_envs.compiled import compiled

_ACCELERATION_PX = 4.0  # per env step squared


@compiled
def trapezoid(distance_px: float, speed_px: float) -> np.ndarray:
    """Distances along a path [steps], from rest to rest, at most `speed_px` per step. The last one is `distance_px`."""
    top = min(speed_px, math.sqrt(distance_px * _ACCELERATION_PX))
    if top <= 0.0:
        return np.zeros(0)
    ramp = top / _ACCELERATION_PX
    total = distance_px / top + ramp
    steps = math.ceil(total)
    travelled = np.empty(steps)
    for step in range(steps):
        now = (step + 1) * total / steps
        left = total - now
        if now < ramp:
            travelled[step] = 0.5 * _ACCELERATION_PX * now * now
        elif left < ramp:
            travelled[step] = distance_px - 0.5 * _ACCELERATION_PX * left * left
        else:
            travelled[step] = top * (now - 0.5 * ramp)
    travelled[-1] = distance_px
    return travelled


@compiled
def push_targets(
    start_x: float, start_y: float, heading: float, distance_px: float, speed_px: float, dwell_steps: int
) -> np.ndarray:
    """Targets [steps, 2] of a straight push at `heading` rad. The last one is held for `dwell_steps`."""
    travelled = trapezoid(distance_px, speed_px)
    targets = np.empty((len(travelled) + dwell_steps, 2))
    for step in range(len(targets)):
        along = travelled[step] if step < len(travelled) else distance_px
        targets[step, 0] = start_x + along * math.cos(heading)
        targets[step, 1] = start_y + along * math.sin(heading)
    return targets


def path_targets(points: np.ndarray, speed_px: float, dwell_steps: int) -> np.ndarray:
    """Targets [steps, 2] along the polyline `points` [n, 2], corners rounded. The last is held for `dwell_steps`."""
    steps = np.linalg.norm(np.diff(points, axis=0), axis=1)
    marks = np.concatenate([[0.0], np.cumsum(steps)])
    travelled = trapezoid(marks[-1], speed_px)
    targets = np.stack([np.interp(travelled, marks, points[:, axis]) for axis in range(2)], axis=1)
    if len(targets) > 2:
        targets[1:-1] = (targets[:-2] + 2.0 * targets[1:-1] + targets[2:]) / 4.0
    return np.concatenate([targets, np.repeat(points[-1:], dwell_steps, axis=0)])
