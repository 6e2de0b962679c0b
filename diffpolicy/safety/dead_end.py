"""Out of a dead end: a robot that its constraints keep from getting on goes back the way it came, and plans anew.

A policy that was not told of an obstacle goes on wanting the way that it bars. From farther back it may draw another.

Shape legend: B robots, Q of them that a call is about, n rows of a chunk, A action.
"""

from collections import deque

import torch
from torch import Tensor

PATIENCE = 3  # plans in a row that were not what the policy wanted
NOWHERE = 0.1  # of half the range of the actions: the robot has moved less than this meanwhile
SPACING = 0.03  # of half the range, between the positions that are remembered
CHUNKS_BACK = 3
TRAIL_LENGTH = 100  # positions


class DeadEnd:
    """Remembers where each of `batch` robots has been; `half_range` is that of the actions in the data."""

    def __init__(self, batch: int, half_range: float) -> None:
        self._half_range = half_range
        self._trail = [deque[Tensor](maxlen=TRAIL_LENGTH) for _ in range(batch)]
        self._latest: list[Tensor | None] = [None] * batch
        self._fastest = [0.0] * batch  # the farthest that each has come in a tick
        self._troubled_since: list[Tensor | None] = [None] * batch
        self._troubled = [0] * batch
        self._chunks_back = [0] * batch

    def forget(self, mask: Tensor) -> None:
        """New episodes for the robots of `mask` [B]."""
        for robot in mask.nonzero().squeeze(1).tolist():
            self._trail[robot].clear()
            self._latest[robot], self._fastest[robot] = None, 0.0
            self._troubled[robot] = self._chunks_back[robot] = 0

    def visit(self, positions: Tensor) -> None:
        """The robots are at `positions` [B, A] at this tick."""
        for robot, position in enumerate(positions.clone()):
            trail, latest = self._trail[robot], self._latest[robot]
            if latest is not None:
                self._fastest[robot] = max(self._fastest[robot], float((position - latest).norm()))
            self._latest[robot] = position
            is_new = not trail or float((position - trail[-1]).norm()) > SPACING * self._half_range
            if is_new and self._chunks_back[robot] == 0:
                trail.append(position)

    def is_stuck(self, robots: Tensor, positions: Tensor, is_troubled: Tensor) -> Tensor:
        """[Q], which robots should go back now; once for every new plan.

        Args:
            robots: [Q].
            positions: of them [Q, A].
            is_troubled: [Q], whose plan is not certified as a whole, or not nearly what the policy wanted.
        """
        stuck = torch.zeros(len(robots), dtype=torch.bool)
        for i, (robot, position) in enumerate(zip(robots.tolist(), positions, strict=True)):
            if self._chunks_back[robot] > 0:
                self._chunks_back[robot] -= 1
            else:
                self._count(robot, position, bool(is_troubled[i]))
            stuck[i] = self._chunks_back[robot] > 0
        return stuck

    def way_back(self, robots: Tensor, commands: Tensor, n: int) -> Tensor:
        """The next rows [Q, n, A] back along the trails of `robots` [Q], from their last commands [Q, A]."""
        chunks = commands[:, None].repeat(1, n, 1)
        for chunk, robot, at in zip(chunks, robots.tolist(), commands, strict=True):
            for row in range(n):
                at = chunk[row] = self._step_back(robot, at)
        return chunks

    def _step_back(self, robot: int, at: Tensor) -> Tensor:
        """One row on from `at` along the trail, no farther than the robot has come in a tick."""
        trail, left = self._trail[robot], self._fastest[robot]
        while trail:
            way = trail[-1] - at
            distance = float(way.norm())
            if distance > left:
                return at + way * (left / distance)
            at, left = trail.pop(), left - distance
        return at

    def _count(self, robot: int, position: Tensor, is_troubled: bool) -> None:
        since = self._troubled_since[robot]
        has_moved = since is None or float((position - since).norm()) > NOWHERE * self._half_range
        if not is_troubled or has_moved or self._troubled[robot] == 0:
            self._troubled[robot], self._troubled_since[robot] = int(is_troubled), position.clone()
            return
        self._troubled[robot] += 1
        if self._troubled[robot] >= PATIENCE:
            self._troubled[robot], self._chunks_back[robot] = 0, CHUNKS_BACK
