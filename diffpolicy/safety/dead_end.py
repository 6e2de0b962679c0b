"""On from where a robot gets nowhere: it follows a plan to its end, or goes back the way it came, and plans anew.

A policy that plans anew every few ticks may undo each time what it has begun, though the later rows of its plans lead
on. One that was not told of an obstacle goes on wanting the way that it bars; from farther back it may draw another.

Shape legend: B robots, Q of them that a call is about, n rows of a chunk, A action.
"""

import math
from collections import deque
from dataclasses import dataclass, field

import torch
from torch import Tensor

PATIENCE = 3  # plans in a row
NOWHERE = 0.1  # of half the range of the actions: the robot has moved less than this meanwhile
SPACING = 0.03  # of half the range, between the positions that are remembered
CHUNKS_BACK = 3
TRAIL_LENGTH = 100  # positions

NEW, FOLLOW, BACK = range(3)
Point = list[float]  # [A]; of one robot at a time, numbers are many times faster than tensors


@dataclass
class _Past:
    """Of one robot, in one episode.

    Attributes:
        trail: positions that it came by.
        latest: position.
        fastest: the farthest that it has come in a tick.
        here: where it was at the first of `plans` plans in a row that got it nowhere.
        troubled: how many of the last of them were not certified as a whole, or not nearly what the policy wanted.
        rest: rows [_, A] that are left of a plan that it follows.
        chunks_back: that it has yet to go back.
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
    """Remembers where each of `batch` robots has been; `half_range` is that of the actions in the data."""

    def __init__(self, batch: int, half_range: float) -> None:
        self._half_range = half_range
        self._past = [_Past() for _ in range(batch)]

    def forget(self, mask: Tensor) -> None:
        """New episodes for the robots of `mask` [B]."""
        for robot in mask.nonzero().squeeze(1).tolist():
            self._past[robot] = _Past()

    def visit(self, positions: Tensor) -> None:
        """The robots are at `positions` [B, A] at this tick."""
        for past, position in zip(self._past, positions.tolist(), strict=True):
            if past.latest is not None:
                past.fastest = max(past.fastest, math.dist(position, past.latest))
            past.latest = position
            is_new = not past.trail or math.dist(position, past.trail[-1]) > SPACING * self._half_range
            if is_new and past.chunks_back == 0:
                past.trail.append(position)

    def turn(self, robots: Tensor, positions: Tensor, is_troubled: Tensor, rests: Tensor) -> Tensor:
        """[Q], what to send: NEW, the new plan; FOLLOW, the rest of an earlier one; BACK, the way back. Once a plan.

        Args:
            robots: [Q].
            positions: of them [Q, A].
            is_troubled: [Q], whose plan is not certified as a whole, or not nearly what the policy wanted.
            rests: the rows of their plans that come after those that are to be sent now, [Q, _, A].
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
        """What `robots` [Q] that do not send new plans send, [Q, n, A], after their last `commands` [Q, A]."""
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
    """One row on from `at` along the trail, no farther than the robot has come in a tick."""
    left = past.fastest
    while past.trail:
        distance = math.dist(past.trail[-1], at)
        if distance > left:
            return [a + (b - a) * (left / distance) for a, b in zip(at, past.trail[-1], strict=True)]
        at, left = past.trail.pop(), left - distance
    return at
