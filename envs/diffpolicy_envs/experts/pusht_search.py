"""Beam search for a sequence of pushes from the table that brings the block to the goal pose.

The cost of a candidate is the time so far in env steps: the path to the contact at free speed, a fixed part per push,
and the push length at push speed. Candidates are ranked by cost + estimate. The estimate is proportional to the misfit
with the goal. The beam is kept diverse: no two of its poses share a cell of 4 px, 4 px, 0.06 rad with nearby end
contacts.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from diffpolicy_envs.compiled import compiled
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

_STEPS_PER_PUSH = 4.0  # for slowing down, dwelling and speeding up
_UNFINISHED_STEPS = 10.0  # the least cost of another push
_BLOCK_MARGIN_PX = 14.0
_LEAD_AWAY_PX = 3.0
AGENT_MARGIN_PX = 4.0
_POOL = 20_000  # candidates held before the worst are dropped
_POOL_KEPT = 4_000
_MAX_DEPTH = 6
# Later attempts trust the estimate more and keep more candidates, to find any solution rather than the best.
_ATTEMPTS = ((1.0, 60), (2.5, 200), (6.0, 200))


@dataclass(frozen=True)
class Push:
    """Indices into the push table."""

    contact: int
    turn: int
    length: int


@dataclass(frozen=True)
class Costs:
    """The speeds that determine costs in env steps."""

    free_speed_px: float  # px per env step
    push_speed_px: float


def find_first_push(
    table: PushTable, pose: np.ndarray, route_px: np.ndarray, costs: Costs, tolerance_px: float
) -> Push | None:
    """The first of the pushes that bring `pose` [3] to within `tolerance_px` of the goal; None if none are found.

    route_px [n] is the length of the agent's path to each contact now, or inf if that contact cannot come first.
    """
    pushes = _Pushes(table.starts, table.normals, table.changes, table.end_contacts, table.between)
    for trust, width in _ATTEMPTS:
        weight = trust * 0.8 * APPROACH_PX / costs.push_speed_px
        options = np.array([costs.free_speed_px, costs.push_speed_px, weight, tolerance_px])
        found = _beam_search(pose, route_px, pushes, options, width)
        if len(found):
            return Push(int(found[0]), int(found[1]), int(found[2]))
    return None


class _Pushes(NamedTuple):
    """The parts of the push table that compiled code needs."""

    starts: np.ndarray
    normals: np.ndarray
    changes: np.ndarray
    end_contacts: np.ndarray
    between: np.ndarray


class _Pool(NamedTuple):
    """The candidates of one depth, and the best finished one.

    Rows: pose [3], end contact, cost, contact, turn, length, and the index of the parent among all beam rows.
    """

    rows: np.ndarray  # [_POOL, 9]
    ranks: np.ndarray  # [_POOL]
    best_row: np.ndarray  # [9]
    tally: np.ndarray  # [3] number of candidates, rank above which none is useful, rank of `best_row`


@compiled
def out_of_bounds(pose: np.ndarray) -> float:
    """How far (px) the block reaches into the margin along the border; 0 if it does not."""
    worst = 0.0
    for corner in range(len(LOCAL_OUTLINE)):
        x, y = to_world(LOCAL_OUTLINE[corner, 0], LOCAL_OUTLINE[corner, 1], pose)
        low, high = min(x, y), max(x, y)
        worst = max(worst, _BLOCK_MARGIN_PX - low, high - (WORLD_SIZE_PX - _BLOCK_MARGIN_PX))
    return worst


@compiled
def agent_fits(x: float, y: float) -> bool:
    """Whether the agent may go to a point of the world."""
    return min(x, y) >= AGENT_MARGIN_PX and max(x, y) <= WORLD_SIZE_PX - AGENT_MARGIN_PX


@compiled
def _beam_search(pose, route_px, pushes, options, width):
    """The first push (contact, turn, length) of the best sequence; empty if none reaches the goal."""
    rows = np.zeros((1 + _MAX_DEPTH * width, 9))
    rows[0, :3], rows[0, 3], rows[0, 8] = pose, -1.0, -1.0
    first, last = 0, 1
    pool = _Pool(np.empty((_POOL, 9)), np.empty(_POOL), np.zeros(9), np.array([0.0, np.inf, np.inf]))
    for _ in range(_MAX_DEPTH):
        pool.tally[0], pool.tally[1] = 0.0, pool.tally[2]
        for parent in range(first, last):
            if rows[parent, 4] < pool.tally[2]:
                ways = route_px if rows[parent, 3] < 0.0 else pushes.between[int(rows[parent, 3])]
                _expand(rows[parent], parent, ways, pushes, options, pool)
        first, last = last, _select(pool, rows, last, width)
        if first == last:
            break
    if pool.tally[2] == np.inf:
        return np.zeros(0)
    return _first_push(rows, pool.best_row)


@compiled
def _expand(row, parent, ways, pushes, options, pool):
    """Add every useful push from one beam row to the pool."""
    reach = out_of_bounds(row[:3])
    # The search assumes that all paths are free after a push. Near a wall they are not, so the first push leads away.
    allowed = max(reach - _LEAD_AWAY_PX, 0.0) if row[3] < 0.0 else reach
    for contact in range(len(pushes.starts)):
        base = row[4] + ways[contact] / options[0] + _STEPS_PER_PUSH
        start_x, start_y = to_world(pushes.starts[contact, 0], pushes.starts[contact, 1], row[:3])
        if base < pool.tally[1] and agent_fits(start_x, start_y):
            for turn in range(len(DIRECTIONS_RAD)):
                _expand_lengths(row, parent, base, allowed, contact, turn, start_x, start_y, pushes, options, pool)


@compiled
def _expand_lengths(row, parent, base, allowed, contact, turn, start_x, start_y, pushes, options, pool):
    """Add the useful lengths of one push: those within bounds whose rank is still useful."""
    cosine, sine = math.cos(row[2]), math.sin(row[2])
    after, tally = np.empty(3), pool.tally
    for length in range(len(PUSH_LENGTHS_PX)):
        way = PUSH_LENGTHS_PX[length] + APPROACH_PX
        cost = base + way / options[1]
        if cost >= tally[1]:
            break
        change = pushes.changes[contact, turn, length]
        after[0] = row[0] + cosine * change[0] - sine * change[1]
        after[1] = row[1] + sine * change[0] + cosine * change[1]
        after[2] = row[2] + change[2]
        off = misfit(after[0], after[1], after[2])
        finished = off <= options[3]
        rank = cost + options[2] * off + (0.0 if finished else _UNFINISHED_STEPS)
        if rank >= tally[2 if finished else 1] or out_of_bounds(after) > allowed:
            continue
        normal_x, normal_y = pushes.normals[contact]
        heading_x, heading_y = rotated(-normal_x, -normal_y, DIRECTIONS_RAD[turn] + row[2])
        if not agent_fits(start_x + way * heading_x, start_y + way * heading_y):
            break
        target = pool.best_row if finished else pool.rows[int(tally[0])]
        target[:3], target[3], target[4] = after, pushes.end_contacts[contact, turn, length], cost
        target[5], target[6], target[7], target[8] = contact, turn, length, parent
        if finished:
            tally[2], tally[1] = rank, min(tally[1], rank)
        else:
            pool.ranks[int(tally[0])] = rank
            tally[0] += 1
            if tally[0] == _POOL:
                _shrink(pool)


@compiled
def _shrink(pool):
    """Keep the best of a full pool. The worst of them becomes the limit for later candidates."""
    order = np.argsort(pool.ranks)
    rows, ranks = pool.rows.copy(), pool.ranks.copy()
    for index in range(_POOL_KEPT):
        pool.rows[index], pool.ranks[index] = rows[order[index]], ranks[order[index]]
    pool.tally[0] = _POOL_KEPT
    pool.tally[1] = min(pool.tally[1], pool.tally[2], pool.ranks[_POOL_KEPT - 1])


@compiled
def _select(pool, rows, last, width):
    """Append the best `width` candidates, no two alike, to `rows` from row `last` on. Returns the new end."""
    end = last
    for candidate in np.argsort(pool.ranks[: int(pool.tally[0])]):
        row = pool.rows[candidate]
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


@compiled
def _first_push(rows, last_row):
    """The first push (contact, turn, length) on the path from the root, row 0, to `last_row`."""
    row = last_row
    while row[8] > 0.0:
        row = rows[int(row[8])]
    return row[5:8].copy()
