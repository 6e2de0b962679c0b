"""Contacts where the agent may touch the block, and routes that get it there without touching the block before.

All points are in the block's frame (px; see pusht_world). A contact is a point of the outline with its outward normal.
The agent starts a push `START_CLEARANCE_PX` off the surface. Between contacts it goes around the block through nodes
near its six convex corners (a visibility graph), keeping a clearance of `ROUTE_CLEARANCE_PX`.
"""

import math

import numpy as np

from diffpolicy_envs.compiled import compiled
from diffpolicy_envs.experts.pusht_model import outward
from diffpolicy_envs.pusht_world import AGENT_RADIUS_PX, BAR_BOX, LOCAL_OUTLINE, STEM_BOX

START_CLEARANCE_PX = 23.0  # from the agent's centre to the surface
ROUTE_CLEARANCE_PX = 21.0
_CONTACT_SPACING_PX = 8.0
_CONTACT_CORNER_MARGIN_PX = 3.0
_NODE_CLEARANCE_PX = 24.0
DIRECT = -1  # instead of a node: straight from the agent
UNREACHABLE = -2


@compiled
def clearance(x: float, y: float) -> tuple[float, float, float]:
    """Signed distance (px) from the block to a point, and the unit vector away from the block."""
    bar = outward(x, y, BAR_BOX)
    stem = outward(x, y, STEM_BOX)
    return bar if bar[0] < stem[0] else stem


@compiled
def is_clear(start: np.ndarray, end: np.ndarray, room_px: float) -> bool:
    """Whether the whole segment from start [2] to end [2] is at least `room_px` from the block."""
    length = math.hypot(end[0] - start[0], end[1] - start[1])
    travelled = 0.0
    while True:
        share = min(travelled / length, 1.0) if length > 0.0 else 1.0
        free = clearance(start[0] + share * (end[0] - start[0]), start[1] + share * (end[1] - start[1]))[0] - room_px
        if free < 0.0:
            return False
        if share >= 1.0:
            return True
        travelled += max(free, 0.5)  # the block cannot be closer than `free`


def outline_contacts() -> tuple[np.ndarray, np.ndarray]:
    """Contact points [n, 2] and outward normals [n, 2], about 8 px apart, where an agent fits."""
    points, normals = [], []
    for corner, following in zip(LOCAL_OUTLINE, np.roll(LOCAL_OUTLINE, -1, axis=0), strict=True):
        edge = following - corner
        length = math.hypot(*edge)
        normal = np.array([edge[1], -edge[0]]) / length
        usable = length - 2 * _CONTACT_CORNER_MARGIN_PX
        for share in np.linspace(0.0, 1.0, int(usable // _CONTACT_SPACING_PX) + 1):
            point = corner + edge * (_CONTACT_CORNER_MARGIN_PX + share * usable) / length
            start = point + START_CLEARANCE_PX * normal
            if clearance(start[0], start[1])[0] > START_CLEARANCE_PX - 0.1:
                points.append(point)
                normals.append(normal)
    return np.array(points), np.array(normals)


def corner_nodes() -> np.ndarray:
    """Three waypoints [3 * 6, 2] around each convex corner of the block."""
    nodes = []
    for before, corner, after in zip(
        np.roll(LOCAL_OUTLINE, 1, axis=0), LOCAL_OUTLINE, np.roll(LOCAL_OUTLINE, -1, axis=0), strict=True
    ):
        incoming, outgoing = (corner - before), (after - corner)
        if incoming[0] * outgoing[1] - incoming[1] * outgoing[0] < 0.0:
            continue  # a concave corner, where no shortest path bends
        for direction in (np.sign(-outgoing), np.sign(incoming), np.sign(incoming - outgoing)):
            nodes.append(corner + _NODE_CLEARANCE_PX * direction / math.hypot(*direction))
    return np.array(nodes)


def visible_distances(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Straight distances [n, m] in px; inf if the block is in the way."""
    distances = np.full((len(points), len(others)), np.inf)
    for row, point in enumerate(points):
        for column, other in enumerate(others):
            if is_clear(point, other, ROUTE_CLEARANCE_PX):
                distances[row, column] = math.hypot(*(point - other))
    return distances


@compiled
def lifted(x: float, y: float) -> tuple[float, float]:
    """The point itself or, if it is close to the block, the nearest one with room to go around the block."""
    for _ in range(4):
        free, away_x, away_y = clearance(x, y)
        if free >= ROUTE_CLEARANCE_PX + 0.5:
            break
        x += (START_CLEARANCE_PX - free) * away_x
        y += (START_CLEARANCE_PX - free) * away_y
    return x, y


@compiled
def routes_from(
    agent: np.ndarray,
    starts: np.ndarray,
    nodes: np.ndarray,
    node_to_node: np.ndarray,
    node_to_start: np.ndarray,
    usable: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The shortest paths from the agent [2] to every start of a push.

    Returns lengths [n_starts] (px), the last node before each start [n_starts] and the node before each node [n_nodes].
    The latter two are DIRECT or UNREACHABLE if there is no such node. Nodes that are not `usable` [n_nodes] are left
    out.
    """
    lengths, last_nodes = np.full(len(starts), np.inf), np.full(len(starts), UNREACHABLE)
    costs, previous = _ways_to_nodes(agent, nodes, node_to_node, usable)
    room = min(clearance(agent[0], agent[1])[0], ROUTE_CLEARANCE_PX) - 0.5
    for start in range(len(starts)):
        if is_clear(agent, starts[start], room):
            lengths[start] = math.hypot(agent[0] - starts[start, 0], agent[1] - starts[start, 1])
            last_nodes[start] = DIRECT
        for node in range(len(nodes)):
            if costs[node] + node_to_start[node, start] < lengths[start]:
                lengths[start] = costs[node] + node_to_start[node, start]
                last_nodes[start] = node
    return lengths, last_nodes, previous


@compiled
def _ways_to_nodes(agent, nodes, node_to_node, usable):
    """Lengths [n_nodes] (px) of the shortest paths from the agent [2], and the node before each; see `routes_from`."""
    costs, previous = np.full(len(nodes), np.inf), np.full(len(nodes), UNREACHABLE)
    lifted_x, lifted_y = lifted(agent[0], agent[1])
    lift = math.hypot(lifted_x - agent[0], lifted_y - agent[1])
    origin = np.array([lifted_x, lifted_y])
    for node in range(len(nodes)):
        if usable[node] and is_clear(origin, nodes[node], ROUTE_CLEARANCE_PX):
            costs[node] = lift + math.hypot(origin[0] - nodes[node, 0], origin[1] - nodes[node, 1])
            previous[node] = DIRECT
    for _ in range(len(nodes)):  # Bellman-Ford; settles long before the last round
        changed = False
        for node in range(len(nodes)):
            for following in range(len(nodes)):
                if usable[following] and costs[node] + node_to_node[node, following] < costs[following] - 1e-9:
                    costs[following] = costs[node] + node_to_node[node, following]
                    previous[following] = node
                    changed = True
        if not changed:
            break
    return costs, previous


def route_points(
    agent: np.ndarray, start: np.ndarray, last_node: int, previous: np.ndarray, nodes: np.ndarray
) -> np.ndarray:
    """The corner points [n, 2] of a path found by `routes_from`, including agent and start."""
    if last_node == DIRECT:
        return np.array([agent, start])
    way = [start]
    while last_node != DIRECT:
        way.append(nodes[last_node])
        last_node = int(previous[last_node])
    origin = np.array(lifted(agent[0], agent[1]))
    if clearance(agent[0], agent[1])[0] < AGENT_RADIUS_PX + 1.0 or np.any(origin != agent):
        way.append(origin)
    way.append(agent)
    return np.array(way[::-1])
