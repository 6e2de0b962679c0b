"""Recovering from dead ends: a robot that makes no progress follows a plan to its end, or goes back and plans again.

A policy that plans every few ticks may undo with each plan what it began with the last one, even though the later rows
of its plans make progress. A policy that does not know of an obstacle keeps trying the path that is blocked. From
further back it may draw another path.

Shape legend: B robots, Q of them in a call, n rows of a chunk, A action.
"""

import math
from collections import deque
from dataclasses import dataclass, field

import torch
from torch import Tensor

PATIENCE = 3  # plans in a row
NOWHERE = 0.1  # of half the range of the actions; a robot that moves less makes no progress
SPACING = 0.03  # of half the range, between remembered positions
CHUNKS_BACK = 3
TRAIL_LENGTH = 100  # positions

NEW, FOLLOW, BACK = range(3)
Point = list[float]  # [A]; for one robot at a time, floats are many times faster than tensors


@dataclass
class _Past:
    """What is remembered about one robot in one episode.

    Attributes:
        trail: positions that it has passed, oldest first.
        latest: its latest position.
        fastest: the largest distance that it has travelled in one tick.
        here: its position at the first of the current `plans` plans, which have made no progress.
        plans: how many plans in a row have made no progress.
        troubled: how many of the latest of them were not certified as a whole, or were moved far from what the policy
            wanted.
        rest: [_, A], the rows left of a plan that it follows to the end.
        chunks_back: how many more chunks it goes back.
    """

    trail: deque[Point] = field(default_factory=lambda: deque(maxlen=TRAIL_LENGTH))
    latest: Point | None = None
    fastest: float = 0.0
    here: Point | None = None
    plans: int = 0
    troubled: int = 0
    rest: Tensor = field(default_factory=lambda: torch.zeros(0))
    chunks_back: int = 0


class DeadEnd:
    """Remembers where each of `batch` robots has been. `half_range` is half the range of the actions in the data."""

    def __init__(self, batch: int, half_range: float) -> None:
        self._half_range = half_range
        self._past = [_Past() for _ in range(batch)]

    def forget(self, mask: Tensor) -> None:
        """Start new episodes for the robots of `mask` [B]."""
        for robot in mask.nonzero().squeeze(1).tolist():
            self._past[robot] = _Past()

    def visit(self, positions: Tensor) -> None:
        """Record that the robots are at `positions` [B, A] at this tick, except those whose position is not known."""
        for past, position in zip(self._past, positions.tolist(), strict=True):
            if not all(map(math.isfinite, position)):
                continue
            if past.latest is not None:
                past.fastest = max(past.fastest, math.dist(position, past.latest))
            past.latest = position
            is_new = not past.trail or math.dist(position, past.trail[-1]) > SPACING * self._half_range
            if is_new and past.chunks_back == 0:
                past.trail.append(position)

    def turn(self, robots: Tensor, positions: Tensor, is_troubled: Tensor, rests: Tensor) -> Tensor:
        """Choose what to send, [Q]: NEW, the new plan; FOLLOW, the rest of an earlier one; BACK, the way back.

        Call it once per plan.

        Args:
            robots: [Q], indices of the robots.
            positions: [Q, A], their positions.
            is_troubled: [Q], whether the plan is not certified as a whole, or was moved far from what the policy
                wanted.
            rests: [Q, _, A], the rows of their plans after those to be sent now.
        """
        ways = [NEW] * len(robots)
        here, troubled = positions.tolist(), is_troubled.tolist()
        for i, robot in enumerate(robots.tolist()):
            past = self._past[robot]
            if past.chunks_back > 0:
                past.chunks_back -= 1
            elif len(past.rest):
                ways[i] = FOLLOW
            else:
                self._count(past, here[i], troubled[i], rests[i])
            if past.chunks_back > 0:
                ways[i] = BACK
        return torch.tensor(ways, dtype=torch.long)

    def next_rows(self, robots: Tensor, commands: Tensor, n: int) -> Tensor:
        """The rows [Q, n, A] for `robots` [Q] that do not send a new plan, following their last `commands` [Q, A]."""
        chunks = commands[:, None].repeat(1, n, 1)
        for chunk, robot, at in zip(chunks, robots.tolist(), commands.tolist(), strict=True):
            past = self._past[robot]
            if past.chunks_back == 0:
                chunk[:] = past.rest[torch.arange(n).clamp(max=len(past.rest) - 1)]
                past.rest = past.rest[n:]
                continue
            for row in range(n):
                at = _step_back(past, at)
                chunk[row] = torch.tensor(at, dtype=chunk.dtype)
        return chunks

    def _count(self, past: _Past, position: Point, is_troubled: bool, rest: Tensor) -> None:
        if past.here is None or math.dist(position, past.here) > NOWHERE * self._half_range:
            past.here, past.plans, past.troubled = position, 0, 0
        past.plans += 1
        past.troubled = past.troubled + 1 if is_troubled else 0
        if past.troubled >= PATIENCE:
            past.plans, past.troubled, past.chunks_back = 0, 0, CHUNKS_BACK
        elif past.plans >= PATIENCE:
            past.rest = rest.clone()


def _step_back(past: _Past, at: Point) -> Point:
    """Move one row from `at` back along the trail, no further than the robot has travelled in a tick."""
    left = past.fastest
    while past.trail:
        distance = math.dist(past.trail[-1], at)
        if distance > left:
            return [a + (b - a) * (left / distance) for a, b in zip(at, past.trail[-1], strict=True)]
        at, left = past.trail.pop(), left - distance
    return at
