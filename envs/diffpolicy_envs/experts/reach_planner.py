"""The shortest path of a disc among obstacles: a visibility graph, compiled.

Nodes lie around the corners of the obstacles, at the distance that the disc must keep. An edge is a straight segment
that keeps this distance. Obstacles are those of `reach_geometry`.
"""

import math

import numpy as np

from diffpolicy_envs.compiled import compiled
from diffpolicy_envs.reach_geometry import signed_distance, swept_distance
from diffpolicy_envs.reach_world import AGENT_RADIUS_PX, WORLD_SIZE_PX

_DIRECTIONS = 12  # nodes around a corner
_TOLERANCE_PX = 1e-6


@compiled
def shortest_way(
    start: np.ndarray, goal: np.ndarray, vertices: np.ndarray, radius: np.ndarray, clearance: float, barrier: np.ndarray
) -> np.ndarray:
    """Points [k, 2] from start to goal that keep the clearance (px) and do not cross `barrier` [2, 2]; k is 0 if none.

    If start or goal is closer to an obstacle than the clearance, the path may be as close there, but not closer.
    """
    reach = radius + AGENT_RADIUS_PX + clearance
    nodes = _nodes(start, goal, vertices, reach)
    count = len(nodes)
    length, before = np.full(count, np.inf), np.full(count, -1)
    is_done = np.zeros(count, dtype=np.bool_)
    length[0] = 0.0
    while True:  # Dijkstra (1959); edges are tested only if they would shorten a path
        here = -1
        for node in range(count):
            if not is_done[node] and length[node] < np.inf and (here < 0 or length[node] < length[here]):
                here = node
        if here < 0:
            return np.empty((0, 2))
        if here == 1:
            break
        is_done[here] = True
        for node in range(1, count):
            longer = length[here] + math.hypot(nodes[node, 0] - nodes[here, 0], nodes[node, 1] - nodes[here, 1])
            if not is_done[node] and longer < length[node] and _is_free(nodes, here, node, vertices, reach, barrier):
                length[node], before[node] = longer, here
    steps = 1
    node = 1
    while before[node] >= 0:
        node = before[node]
        steps += 1
    way, node = np.empty((steps, 2)), 1
    for step in range(steps - 1, -1, -1):
        way[step] = nodes[node]
        node = before[node]
    return way


@compiled
def way_length(way: np.ndarray) -> float:
    """The length (px) of points [k, 2]; inf if there are none."""
    total = 0.0 if len(way) else np.inf
    for step in range(1, len(way)):
        total += math.hypot(way[step, 0] - way[step - 1, 0], way[step, 1] - way[step - 1, 1])
    return total


@compiled
def _nodes(start, goal, vertices, reach):
    """Start, goal, and the free positions [n, 2] around all corners."""
    places = np.empty((2 + len(reach) * vertices.shape[1] * _DIRECTIONS, 2))
    places[0], places[1] = start, goal
    count = 2
    for slot in range(len(reach)):
        away = (reach[slot] + _TOLERANCE_PX) / math.cos(math.pi / _DIRECTIONS)
        for corner in range(vertices.shape[1]):
            if corner > 0 and (vertices[slot, corner] == vertices[slot, corner - 1]).all():
                continue
            for direction in range(_DIRECTIONS):
                angle = 2.0 * math.pi * direction / _DIRECTIONS
                x = vertices[slot, corner, 0] + away * math.cos(angle)
                y = vertices[slot, corner, 1] + away * math.sin(angle)
                inside = min(x, y, WORLD_SIZE_PX - x, WORLD_SIZE_PX - y) >= AGENT_RADIUS_PX
                for other in range(len(reach)):
                    inside = inside and signed_distance(x, y, vertices[other], reach[other]) >= 0.0
                if inside:
                    places[count, 0], places[count, 1] = x, y
                    count += 1
    return places[:count]


@compiled
def _is_free(nodes, one, other, vertices, reach, barrier):
    """Whether the straight segment between two nodes keeps the distance."""
    start, end = nodes[one], nodes[other]
    if _crosses(start, end, barrier[0], barrier[1]):
        return False
    for slot in range(len(reach)):
        allowed = min(
            signed_distance(start[0], start[1], vertices[slot], reach[slot]),
            signed_distance(end[0], end[1], vertices[slot], reach[slot]),
            0.0,
        )
        if swept_distance(start, end, vertices[slot], reach[slot], 0.0) < allowed - _TOLERANCE_PX:
            return False
    return True


@compiled
def _crosses(a, b, c, d):
    return _turn(a, b, c) * _turn(a, b, d) < 0.0 and _turn(c, d, a) * _turn(c, d, b) < 0.0


@compiled
def _turn(a, b, c):
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
