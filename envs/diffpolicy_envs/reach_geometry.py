"""Distances to an obstacle, compiled.

An obstacle is the convex hull of four points, in order around it, inflated by a radius. Points may coincide: one point
makes a disc, two a capsule, three a triangle.
"""

import math

import numpy as np

from diffpolicy_envs.compiled import compiled

_SEARCH_STEPS = 48  # each keeps 2/3 of an interval of at most 20 px, down to 1e-7 px
_TRACE_STEPS = 64
_TRACE_TOLERANCE_PX = 0.05


@compiled
def signed_distance(x: float, y: float, vertices: np.ndarray, radius: float) -> float:
    """Distance (px) from a point to the surface of an obstacle with vertices [4, 2]; inside, minus the depth."""
    nearest_squared = np.inf
    is_left, is_right = False, False
    count = len(vertices)
    for corner in range(count):
        from_x, from_y = vertices[corner, 0], vertices[corner, 1]
        along_x = vertices[(corner + 1) % count, 0] - from_x
        along_y = vertices[(corner + 1) % count, 1] - from_y
        to_x, to_y = x - from_x, y - from_y
        length_squared = along_x * along_x + along_y * along_y
        share = 0.0
        if length_squared > 0.0:
            share = min(max((to_x * along_x + to_y * along_y) / length_squared, 0.0), 1.0)
            turn = along_x * to_y - along_y * to_x
            is_left |= turn >= 0.0
            is_right |= turn <= 0.0
        away_x, away_y = to_x - share * along_x, to_y - share * along_y
        nearest_squared = min(nearest_squared, away_x * away_x + away_y * away_y)
    distance = math.sqrt(nearest_squared)
    is_inside = is_left != is_right  # on the same side of every edge; a point or a segment has no inside
    return (-distance if is_inside else distance) - radius


@compiled
def swept_distance(start: np.ndarray, end: np.ndarray, vertices: np.ndarray, radius: float, below: float) -> float:
    """The least signed distance (px) along the straight segment from start [2] to end [2].

    It is exact if it is less than `below`. Otherwise it is the distance at one end, which is also at least `below`.
    """
    at_start = signed_distance(start[0], start[1], vertices, radius)
    at_end = signed_distance(end[0], end[1], vertices, radius)
    way_x, way_y = end[0] - start[0], end[1] - start[1]
    least = min(at_start, at_end)
    # The distance to a convex set changes by at most the distance travelled, and is convex along the segment.
    if 0.5 * (at_start + at_end - math.hypot(way_x, way_y)) >= min(below, least):
        return least
    inwards = 1e-6 if at_start <= at_end else 1.0 - 1e-6
    if signed_distance(start[0] + inwards * way_x, start[1] + inwards * way_y, vertices, radius) >= least:
        return least  # convex, and it rises from this end
    low, high = 0.0, 1.0
    for _ in range(_SEARCH_STEPS):
        first, second = low + (high - low) / 3.0, high - (high - low) / 3.0
        at_first = signed_distance(start[0] + first * way_x, start[1] + first * way_y, vertices, radius)
        at_second = signed_distance(start[0] + second * way_x, start[1] + second * way_y, vertices, radius)
        least = min(least, at_first, at_second)
        if at_first <= at_second:
            high = second
        else:
            low = first
    return least


@compiled
def free_distances(
    x: float, y: float, agent_radius: float, vertices: np.ndarray, radius: np.ndarray, directions: int, limit: float
) -> np.ndarray:
    """How far (px) a disc can move from (x, y) before contact, in evenly spaced directions, at most `limit`.

    Shapes: vertices [n, 4, 2], radius [n] -> [directions]. Uses sphere tracing (Hart 1996), at most 0.05 px short.
    """
    free = np.empty(directions)
    for index in range(directions):
        angle = 2.0 * math.pi * index / directions
        cosine, sine = math.cos(angle), math.sin(angle)
        gone = 0.0
        for _ in range(_TRACE_STEPS):
            room = limit
            for slot in range(len(vertices)):
                distance = signed_distance(x + gone * cosine, y + gone * sine, vertices[slot], radius[slot])
                room = min(room, distance - agent_radius)
            if room < _TRACE_TOLERANCE_PX or gone >= limit:
                break
            gone += room
        free[index] = min(gone, limit)
    return free


@compiled
def tangent_points(
    x: float, y: float, agent_radius: float, vertices: np.ndarray, radius: np.ndarray, limit: float
) -> np.ndarray:
    """The points where a disc at (x, y), going straight, would just pass each obstacle on one side and on the other.

    Points are of the disc's centre. Shapes: vertices [n, 4, 2], radius [n] -> [n, 2, 2] px, clipped to [0, limit]. The
    point at the smaller angle (from +x to +y) comes first. A disc that touches the obstacle passes it where it is.
    """
    places = np.empty((len(radius), 2, 2))
    for slot in range(len(radius)):
        reach = radius[slot] + agent_radius
        middle_x, middle_y = vertices[slot, :, 0].mean() - x, vertices[slot, :, 1].mean() - y
        ahead = math.atan2(middle_y, middle_x)
        for index in range(2):
            side = 2.0 * index - 1.0
            widest, away = -np.inf, 0.0
            for corner in range(vertices.shape[1]):
                to_x, to_y = vertices[slot, corner, 0] - x, vertices[slot, corner, 1] - y
                distance = math.hypot(to_x, to_y)
                # Angle of the corner relative to the middle, and of the tangent to the circle around it.
                turn = math.atan2(middle_x * to_y - middle_y * to_x, middle_x * to_x + middle_y * to_y)
                turn = side * turn + (math.asin(reach / distance) if distance > reach else 0.5 * math.pi)
                if turn > widest:
                    widest, away = turn, math.sqrt(max(distance * distance - reach * reach, 0.0))
            places[slot, index, 0] = min(max(x + away * math.cos(ahead + side * widest), 0.0), limit)
            places[slot, index, 1] = min(max(y + away * math.sin(ahead + side * widest), 0.0), limit)
    return places
