"""One decision of the expert: the next push for a state, and the path to its start."""

import math
from dataclasses import dataclass

import numpy as np

from diffpolicy_envs.experts import pusht_routes as routes
from diffpolicy_envs.experts.pusht_refine import Stroke, refine_stroke
from diffpolicy_envs.experts.pusht_search import Costs, agent_fits, find_first_push
from diffpolicy_envs.experts.pusht_table import (
    DIRECTIONS_RAD,
    GOAL,
    GYRATION_PX,
    PUSH_LENGTHS_PX,
    PushTable,
    misfit,
    to_block,
    to_world,
)

NEAR_GOAL_PX = 60.0  # closer than this, the expert slows down and looks for one push that finishes
_FINE_PX = 10.0
_TOLERANCE_PX, _FINE_TOLERANCE_PX = 3.0, 1.3
_FINISHERS = 6
_FINISHER_MISFIT_PX = 5.0


@dataclass(frozen=True)
class Decision:
    """The next push, and the corner points [n, 2] (world, px) of the path to its start."""

    stroke: Stroke
    way: np.ndarray
    is_last: bool


def decide(
    table: PushTable,
    agent: np.ndarray,
    pose: np.ndarray,
    free_speed_px: float,
    push_speed_px: float,
    wanted_coverage: float,
    barred: set[int],
) -> Decision | None:
    """The next push for the agent [2] and the block's pose [3]; None if no plan is found.

    Contacts in `barred` are not used.
    """
    local_agent = np.array(to_block(agent[0], agent[1], pose))
    usable = np.array([agent_fits(*to_world(node[0], node[1], pose)) for node in table.nodes])
    lengths, last_nodes, previous = routes.routes_from(
        local_agent, table.starts, table.nodes, table.node_to_node, table.node_to_start, usable
    )
    lengths[list(barred)] = np.inf
    costs = Costs(free_speed_px, push_speed_px)
    stroke = _finishing_stroke(table, pose, lengths, costs, wanted_coverage)
    is_last = stroke is not None
    if stroke is None:
        close = misfit(pose[0], pose[1], pose[2]) < _FINE_PX
        push = find_first_push(table, pose, lengths, costs, _FINE_TOLERANCE_PX if close else _TOLERANCE_PX)
        if push is None:
            return None
        stroke = Stroke(push.contact, 0.0, DIRECTIONS_RAD[push.turn], PUSH_LENGTHS_PX[push.length])
    start = table.starts[stroke.contact]
    way = routes.route_points(local_agent, start, int(last_nodes[stroke.contact]), previous, table.nodes)
    return Decision(stroke, np.array([to_world(x, y, pose) for x, y in way]), is_last)


def _finishing_stroke(
    table: PushTable, pose: np.ndarray, route_px: np.ndarray, costs: Costs, wanted_coverage: float
) -> Stroke | None:
    """The cheapest single push that reaches the wanted coverage in the model; None if there is none."""
    if misfit(pose[0], pose[1], pose[2]) > NEAR_GOAL_PX:
        return None
    best, best_cost = None, math.inf
    for contact, turn, length in _near_finishers(table, pose, route_px, costs):
        stroke = refine_stroke(
            Stroke(contact, 0.0, DIRECTIONS_RAD[turn], PUSH_LENGTHS_PX[length]),
            table.points[contact],
            table.normals[contact],
            None,
            pose,
            costs.push_speed_px,
            wanted_coverage,
        )
        cost = stroke.cost + 0.03 * route_px[contact] / costs.free_speed_px
        if stroke.expected_coverage >= wanted_coverage and cost < best_cost:
            best, best_cost = stroke, cost
    return best


def _near_finishers(
    table: PushTable, pose: np.ndarray, route_px: np.ndarray, costs: Costs
) -> list[tuple[int, int, int]]:
    """Rows of the table that come close to the goal: the best one per contact, cheapest first."""
    cosine, sine = math.cos(pose[2]), math.sin(pose[2])
    change_x, change_y, change_angle = np.moveaxis(table.changes, -1, 0)
    off_x = pose[0] + cosine * change_x - sine * change_y - GOAL[0]
    off_y = pose[1] + sine * change_x + cosine * change_y - GOAL[1]
    turn_px2 = 2.0 * GYRATION_PX**2 * (1.0 - np.cos(pose[2] + change_angle - GOAL[2]))
    off = np.sqrt(off_x**2 + off_y**2 + turn_px2)  # [n, d, l]
    steps = route_px[:, None, None] / costs.free_speed_px + PUSH_LENGTHS_PX / costs.push_speed_px
    for contact, (x, y) in enumerate(table.starts):
        if not agent_fits(*to_world(x, y, pose)):
            off[contact] = np.inf
    rank = np.where(off < _FINISHER_MISFIT_PX, steps + 2.0 * off, np.inf).reshape(len(off), -1)
    best = rank.argmin(axis=1)
    order = np.argsort(rank[np.arange(len(best)), best], kind="stable")[:_FINISHERS]
    shape = off.shape[1:]
    return [
        (int(contact), int(best[contact] // shape[1]), int(best[contact] % shape[1]))
        for contact in order
        if np.isfinite(rank[contact, best[contact]])
    ]
