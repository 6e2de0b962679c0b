"""The state of the projector for one batch of robots: multipliers, and the convex sets near a plan.

Shape legend: B batch, R rows of one constraint, C copies of them (one per obstacle slot if the rows are segments), A
action. A constraint sees its rows as [B, R, A], or as segments [B, C, R / 2, 2, A].
"""

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from diffpolicy.constraints.constraint import Prox, Scene
from diffpolicy.constraints.planar.obstacles import Obstacles


@dataclass
class Task:
    """One batch of robots to plan for. It carries multipliers and convex sets from call to call.

    Attributes:
        obstacles: the obstacles around the robots.
        offset: [A, B, all R], the rows that result without commands.
        share: [B, C, 1, 1, 1], the weight of each copy in the penalty of its constraint.
        scenes: one per constraint.
        multipliers: one tensor per constraint, shaped like its rows; empty until they are needed.
        proxes: one per constraint, onto its convex part near the plan of an earlier call; empty before the first call.
    """

    obstacles: Obstacles
    offset: Tensor
    share: Tensor
    scenes: list[Scene]
    multipliers: list[Tensor] = field(default_factory=list)
    proxes: list[Prox] = field(default_factory=list)

    def robots(self, index: Tensor) -> "Task":
        """The task of the robots `index`, without proxes."""
        obstacles = self.obstacles.robots(index)
        scenes = [Scene(obstacles, scene.time_s) for scene in self.scenes]
        multipliers = [one[index] for one in self.multipliers]
        return Task(obstacles, self.offset[:, index], self.share[index], scenes, multipliers)


@dataclass(frozen=True)
class Near:
    """Rows of commands and the convex sets near them, one of each per constraint."""

    rows: list[Tensor]
    proxes: list[Prox]

    @property
    def is_met(self) -> bool:
        """Whether all rows lie in their sets. Most do, and this is faster to compute than the shortfall."""
        return all(torch.equal(nearest, y) for nearest, y in zip(self._nearest, self.rows, strict=True))

    @cached_property
    def shortfall(self) -> Tensor:
        """[B], the largest difference along any axis between a row and the nearest one in its set."""
        off = [(nearest - y).flatten(1) for nearest, y in zip(self._nearest, self.rows, strict=True)]
        return torch.cat(off, dim=1).abs().amax(1)

    @cached_property
    def _nearest(self) -> list[Tensor]:
        return [prox(y) for prox, y in zip(self.proxes, self.rows, strict=True)]
