"""Exact share of Push-T's goal that the block covers, compiled.

Block and goal are the same union of two rectangles without a common interior, so the area of their intersection is the
sum of four rectangle intersections. In the goal's frame, the goal's rectangles are axis-aligned boxes, and clipping by
a box is four half-plane clips (Sutherland and Hodgman 1974).
"""

import math

import numpy as np

from diffpolicy_envs.compiled import compiled
from diffpolicy_envs.pusht_world import BAR_BOX, BLOCK_AREA_PX2, GOAL_POSE, STEM_BOX

_GOAL_X, _GOAL_Y, _GOAL_ANGLE = GOAL_POSE
_GOAL_COSINE, _GOAL_SINE = math.cos(_GOAL_ANGLE), math.sin(_GOAL_ANGLE)
# Two poses further apart than this cannot overlap: the far end of the stem is 15 x 120 px from the origin.
_REACH_PX = 2.0 * math.hypot(15.0, 120.0)
_MAX_CORNERS = 8  # a rectangle cut by four lines has at most eight


@compiled
def coverage(x: float, y: float, angle: float) -> float:
    """area(block and goal) / area(goal) in [0, 1], with the block's origin at (x, y) px, turned by `angle` rad."""
    return pose_overlap(x, y, angle, _GOAL_X, _GOAL_Y, _GOAL_COSINE, _GOAL_SINE)


@compiled
def pose_overlap(
    x: float, y: float, angle: float, other_x: float, other_y: float, other_cosine: float, other_sine: float
) -> float:
    """The share of a block's area, with its origin at (other_x, other_y), that the block at (x, y, angle) covers."""
    offset_x, offset_y = x - other_x, y - other_y
    if offset_x * offset_x + offset_y * offset_y > _REACH_PX * _REACH_PX:
        return 0.0
    local_x = other_cosine * offset_x + other_sine * offset_y
    local_y = -other_sine * offset_x + other_cosine * offset_y
    cosine = math.cos(angle) * other_cosine + math.sin(angle) * other_sine
    sine = math.sin(angle) * other_cosine - math.cos(angle) * other_sine
    points = np.empty((2, _MAX_CORNERS, 2))
    area = 0.0
    for box in (BAR_BOX, STEM_BOX):
        for clip in (BAR_BOX, STEM_BOX):
            area += _box_overlap(box, clip, local_x, local_y, cosine, sine, points)
    return min(area / BLOCK_AREA_PX2, 1.0)


@compiled
def _box_overlap(box, clip, x, y, cosine, sine, points):
    """The area of `box`, turned and then moved to (x, y), inside the box `clip`. `points` [2, 8, 2] is work space."""
    low_x, low_y, high_x, high_y = box
    corners = ((low_x, low_y), (high_x, low_y), (high_x, high_y), (low_x, high_y))
    for corner, (local_x, local_y) in enumerate(corners):
        points[0, corner, 0] = x + cosine * local_x - sine * local_y
        points[0, corner, 1] = y + sine * local_x + cosine * local_y
    count = _clip(points[0], 4, points[1], 0, 1.0, clip[0])
    count = _clip(points[1], count, points[0], 1, 1.0, clip[1])
    count = _clip(points[0], count, points[1], 0, -1.0, -clip[2])
    count = _clip(points[1], count, points[0], 1, -1.0, -clip[3])
    return _polygon_area(points[0], count)


@compiled
def _clip(source, count, target, axis, sign, bound):
    """Copy the part of `source[:count]` with sign * coordinate >= bound to `target`. Return its corner count."""
    written = 0
    for index in range(count):
        following = index + 1 if index + 1 < count else 0
        depth = sign * source[index, axis] - bound
        depth_following = sign * source[following, axis] - bound
        if depth >= 0.0 and written < _MAX_CORNERS:
            target[written, 0] = source[index, 0]
            target[written, 1] = source[index, 1]
            written += 1
        if (depth >= 0.0) != (depth_following >= 0.0) and written < _MAX_CORNERS:
            share = depth / (depth - depth_following)
            target[written, 0] = source[index, 0] + share * (source[following, 0] - source[index, 0])
            target[written, 1] = source[index, 1] + share * (source[following, 1] - source[index, 1])
            written += 1
    return written


@compiled
def _polygon_area(points, count):
    """The area of the convex polygon `points[:count]`, by the shoelace sum from its first corner."""
    doubled = 0.0
    for index in range(2, count):
        left_x, left_y = points[index - 1, 0] - points[0, 0], points[index - 1, 1] - points[0, 1]
        right_x, right_y = points[index, 0] - points[0, 0], points[index, 1] - points[0, 1]
        doubled += left_x * right_y - left_y * right_x
    return 0.5 * abs(doubled)
