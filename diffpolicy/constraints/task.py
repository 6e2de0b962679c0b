"""What the projector carries along: the robots of one batch, their multipliers, and the convex sets near a plan.

Shape legend: B batch, R rows of one constraint, C copies of them (one an obstacle slot, where rows are segments), A
action. Rows as a constraint sees them: [B, R, A], or [B, C, R / 2, 2, A].
"""

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from diffpolicy.constraints.constraint import Prox, Scene
from diffpolicy.constraints.planar.obstacles import Obstacles


@dataclass
class Task:
    """One batch of robots to plan for; carries multipliers and convex sets from call to call.

    Attributes:
        obstacles: in use around some of them.
        offset: all rows without commands, [A, B, all R].
        share: of each copy in the penalty of its constraint, [B, C, 1, 1, 1].
        scenes: of each constraint.
        multipliers: of each constraint, as it sees its rows; empty before they are needed.
        proxes: of each constraint, of its convex part near the plan of an earlier call; empty before the first.
    """

    obstacles: Obstacles
    offset: Tensor
    share: Tensor
    scenes: list[Scene]
    multipliers: list[Tensor] = field(default_factory=list)
    proxes: list[Prox] = field(default_factory=list)

    def robots(self, index: Tensor) -> "Task":
        """Of the robots `index`."""
        obstacles = self.obstacles.robots(index)
        scenes = [Scene(obstacles, scene.time_s) for scene in self.scenes]
        multipliers = [one[index] for one in self.multipliers]
        return Task(obstacles, self.offset[:, index], self.share[index], scenes, multipliers)


@dataclass(frozen=True)
class Near:
    """Rows of commands, and the convex sets near them, a constraint each."""

    rows: list[Tensor]
    proxes: list[Prox]

    @property
    def is_met(self) -> bool:
        """Whether all rows are in their sets, as most are: sooner known than the shortfall."""
        return all(torch.equal(nearest, y) for nearest, y in zip(self._nearest, self.rows, strict=True))

    @cached_property
    def shortfall(self) -> Tensor:
        """[B], the farthest that any row is from the set near it."""
        off = [(nearest - y).flatten(1) for nearest, y in zip(self._nearest, self.rows, strict=True)]
        return torch.cat(off, dim=1).abs().amax(1)

    @cached_property
    def _nearest(self) -> list[Tensor]:
        return [prox(y) for prox, y in zip(self.proxes, self.rows, strict=True)]
