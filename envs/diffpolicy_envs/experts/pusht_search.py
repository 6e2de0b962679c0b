"""Beam search over sequences of pushes from the table, down to the goal pose.

A candidate's cost is the time so far in env steps: way to the contact at free speed, a fixed part per push, push
length at push speed. Candidates are ranked by cost + estimate, the estimate being proportional to the misfit with the
goal. The beam is kept diverse: no two of its poses share a cell of 4 px, 4 px, 0.06 rad with nearby end contacts.
"""

import math
from dataclasses import dataclass

import numpy as np
from numba import njit

from diffpolicy_envs.experts.pusht_table import (
    APPROACH_PX,
    DIRECTIONS_RAD,
    PUSH_LENGTHS_PX,
    PushTable,
    misfit,
    rotated,
    to_world,
)
from diffpolicy_envs.pusht_world import LOCAL_OUTLINE, WORLD_SIZE_PX

_STEPS_PER_PUSH = 4.0  # slowing down, dwelling, speeding up
_UNFINISHED_STEPS = 10.0  # what another push would cost at least
_BLOCK_MARGIN_PX = 14.0
_LEAD_AWAY_PX = 3.0
AGENT_MARGIN_PX = 4.0
_POOL = 20_000  # candidates held before the worst are dropped
_POOL_KEPT = 4_000
_MAX_DEPTH = 6
# Later attempts trust the estimate more and keep more: they find something rather than the best.
_ATTEMPTS = ((1.0, 60), (2.5, 200), (6.0, 200))


@dataclass(frozen=True)
class Push:
    """Row numbers of the push table, and the pose [3] that the table says it leads to."""

    contact: int
    turn: int
    length: int
    outcome: np.ndarray


@dataclass(frozen=True)
class Costs:
    """What the search pays, in env steps."""

    free_speed_px: float  # per env step
    push_speed_px: float


def find_pushes(
    table: PushTable, pose: np.ndarray, route_px: np.ndarray, costs: Costs, tolerance_px: float
) -> list[Push] | None:
    """The pushes that bring `pose` [3] to within `tolerance_px` of the goal; None where none are found.

    route_px [n] is the agent's way to each contact now, infinite where that one cannot be used first.
    """
    for trust, width in _ATTEMPTS:
        weight = trust * 0.8 * APPROACH_PX / costs.push_speed_px
        found = _beam_search(
            pose,
            route_px,
            table.starts,
            table.normals,
            table.changes,
            table.end_contacts,
            table.between,
            np.array([costs.free_speed_px, costs.push_speed_px, weight, tolerance_px]),
            width,
        )
        if len(found):
            return [Push(int(row[0]), int(row[1]), int(row[2]), row[3:6].copy()) for row in found]
    return None


@njit(cache=True)
def out_of_bounds(pose: np.ndarray) -> float:
    """How far (px) the block reaches into the margin along the border, 0 where it does not."""
    worst = 0.0
    for corner in range(len(LOCAL_OUTLINE)):
        x, y = to_world(LOCAL_OUTLINE[corner, 0], LOCAL_OUTLINE[corner, 1], pose)
        low, high = min(x, y), max(x, y)
        worst = max(worst, _BLOCK_MARGIN_PX - low, high - (WORLD_SIZE_PX - _BLOCK_MARGIN_PX))
    return worst


@njit(cache=True)
def agent_fits(x: float, y: float) -> bool:
    """Whether a point of the world is one that the agent may go to."""
    return min(x, y) >= AGENT_MARGIN_PX and max(x, y) <= WORLD_SIZE_PX - AGENT_MARGIN_PX


@njit(cache=True)
def _beam_search(pose, route_px, starts, normals, changes, end_contacts, between, options, width):
    """Rows (contact, turn, length, pose after it [3]) of the best sequence, first push first; none if it fails."""
    # Beam rows: pose [3], end contact, cost, contact, turn, length, row of the parent among all rows so far.
    rows = np.zeros((1 + _MAX_DEPTH * width, 9))
    rows[0, :3], rows[0, 3], rows[0, 8] = pose, -1.0, -1.0
    first, last = 0, 1
    best, best_row = np.inf, np.zeros(9)
    pool, ranks = np.empty((_POOL, 9)), np.empty(_POOL)
    for _ in range(_MAX_DEPTH):
        count, limit = 0, best
        for parent in range(first, last):
            if rows[parent, 4] >= best:
                continue
            ways = route_px if rows[parent, 3] < 0.0 else between[int(rows[parent, 3])]
            count, limit, best = _expand(
                rows[parent], parent, ways, starts, normals, changes, end_contacts, options,
                pool, ranks, count, limit, best, best_row,
            )  # fmt: skip
        first, last = last, _select(pool, ranks, count, rows, last, width)
        if first == last:
            break
    if best == np.inf:
        return np.zeros((0, 6))
    return _trace(rows, best_row)


@njit(cache=True)
def _expand(
    row, parent, ways, starts, normals, changes, end_contacts, options,
    pool, ranks, count, limit, best, best_row,
):  # fmt: skip
    """Rank every push from one beam row; returns the pool's count and limit, and the best finished cost."""
    free_speed, push_speed, weight, tolerance = options
    reach = out_of_bounds(row[:3])
    # By a wall ways are blocked that the search takes for free after a push, however small: the first must lead away.
    allowed = max(reach - _LEAD_AWAY_PX, 0.0) if row[3] < 0.0 else reach
    cosine, sine = math.cos(row[2]), math.sin(row[2])
    after = np.empty(3)
    for contact in range(len(starts)):
        base = row[4] + ways[contact] / free_speed + _STEPS_PER_PUSH
        start_x, start_y = to_world(starts[contact, 0], starts[contact, 1], row[:3])
        if not base < limit or not agent_fits(start_x, start_y):
            continue
        for turn in range(len(DIRECTIONS_RAD)):
            for length in range(len(PUSH_LENGTHS_PX)):
                cost = base + (PUSH_LENGTHS_PX[length] + APPROACH_PX) / push_speed
                if cost >= limit:
                    break
                change = changes[contact, turn, length]
                after[0] = row[0] + cosine * change[0] - sine * change[1]
                after[1] = row[1] + sine * change[0] + cosine * change[1]
                after[2] = row[2] + change[2]
                off = misfit(after[0], after[1], after[2])
                finished = off <= tolerance
                rank = cost + weight * off + (0.0 if finished else _UNFINISHED_STEPS)
                if rank >= (best if finished else limit):
                    continue
                if out_of_bounds(after) > allowed:
                    continue
                heading_x, heading_y = rotated(
                    -normals[contact, 0], -normals[contact, 1], DIRECTIONS_RAD[turn] + row[2]
                )
                way = PUSH_LENGTHS_PX[length] + APPROACH_PX
                if not agent_fits(start_x + way * heading_x, start_y + way * heading_y):
                    break
                target = best_row if finished else pool[count]
                target[:3], target[3], target[4] = after, end_contacts[contact, turn, length], cost
                target[5], target[6], target[7], target[8] = contact, turn, length, parent
                if finished:
                    best, limit = rank, min(limit, rank)
                    continue
                ranks[count] = rank
                count += 1
                if count == _POOL:
                    count, limit = _shrink(pool, ranks, min(limit, best))
    return count, limit, best


@njit(cache=True)
def _shrink(pool, ranks, limit):
    """Keep the best of a full pool; the worst of them becomes the limit for what follows."""
    order = np.argsort(ranks)[:_POOL_KEPT]
    limit = min(limit, ranks[order[-1]])
    pool[:_POOL_KEPT], ranks[:_POOL_KEPT] = pool[order], ranks[order]
    return _POOL_KEPT, limit


@njit(cache=True)
def _select(pool, ranks, count, rows, last, width):
    """Append the best `width` candidates, no two alike, to `rows` from row `last` on; returns the new end."""
    end = last
    for candidate in np.argsort(ranks[:count]):
        row = pool[candidate]
        alike = False
        for other in range(last, end):
            if (
                math.floor(row[0] / 4.0) == math.floor(rows[other, 0] / 4.0)
                and math.floor(row[1] / 4.0) == math.floor(rows[other, 1] / 4.0)
                and math.floor(row[2] / 0.06) == math.floor(rows[other, 2] / 0.06)
                and row[3] // 3 == rows[other, 3] // 3
            ):
                alike = True
                break
        if not alike:
            rows[end] = row
            end += 1
            if end == last + width:
                break
    return end


@njit(cache=True)
def _trace(rows, last_row):
    """The pushes from the root to `last_row`: (contact, turn, length, pose [3]) each."""
    found = np.zeros((_MAX_DEPTH, 6))
    row, depth = last_row, 0
    while row[8] >= 0.0:
        found[depth, :3], found[depth, 3:6] = row[5:8], row[:3]
        row = rows[int(row[8])]
        depth += 1
    return found[:depth][::-1].copy()
