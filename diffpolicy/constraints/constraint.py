"""What a constraint is: the quantity that it bounds, the nearest allowed values, and how far a plan is from harm.

Shape legend: B batch, T ticks, R rows, A action, M obstacle slots.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

from torch import Tensor

from diffpolicy.constraints.planar.obstacles import Obstacles

Prox = Callable[[Tensor], Tensor]
"""Rows -> the nearest rows of a convex set, same shape."""


@dataclass(frozen=True)
class Quantity:
    """What a constraint looks at, in physical units: a trajectory gives it as rows [R, A], a constraint bounds them.

    Attributes:
        acts_on: "commands", one row a tick; or "motion", the executed motion, one row a sub-step.
        order: 0 positions, 1 velocities, 2 accelerations, 3 jerks: differences of the positions over time, with
            those before the plan (the last commands, or the measured state).
        segments: pairs [R, 2, A] of each position and the one before, the first being the present one; order 0.
    """

    acts_on: Literal["commands", "motion"]
    order: int = 0
    segments: bool = False

    def __post_init__(self) -> None:
        if self.acts_on not in ("commands", "motion") or self.order not in (0, 1, 2, 3):
            raise ValueError(
                f"quantity: acts_on {self.acts_on!r}, order {self.order}; expected commands or motion, and 0 to 3"
            )
        if self.segments and self.order != 0:
            raise ValueError(f"quantity: segments join positions, order 0, not {self.order}")


@dataclass(frozen=True)
class Scene:
    """What there is besides the rows.

    Attributes:
        obstacles: of each robot, as they were at time 0, the present.
        time_s: [R], when each row is reached; the way to each takes as long as that to the first, from time 0.
        at_rest: [B, R], where the robot stands: a moving obstacle that comes then is not the plan's fault. None
            where nothing is excused.
        error: by which rows may be off, one for all or [B, 1, R]; a margin above it need not be exact, a lower bound
            above it does.
    """

    obstacles: Obstacles
    time_s: Tensor
    at_rest: Tensor | None = None
    error: Tensor | float = math.inf

    @cached_property
    def radius(self) -> Tensor:
        """Of the rounded obstacles when each row is reached [B, M, R]: they are somewhere inside."""
        return self._grown(self.time_s)

    @cached_property
    def radius_before(self) -> Tensor:
        """When the way to each row begins, [B, M, R]."""
        return self._grown(self.time_s - self.time_s[:1])

    def _grown(self, time_s: Tensor) -> Tensor:
        obstacles = self.obstacles
        return obstacles.radius[..., None] + obstacles.speed[..., None] * time_s.to(obstacles.speed)


class Constraint(Protocol):
    """A set of plans. Anything with these three serves.

    `prox` serves the projection, which may fall short; `margin` serves the certificate, which decides.
    """

    @property
    def quantity(self) -> Quantity: ...

    def prox(self, reference: Tensor, scene: Scene) -> Prox:
        """The Euclidean projection of rows [B, R, A] onto the set, or onto a convex part of it near `reference`.

        For segments, of [B, M, R, 2, A] with one copy for each obstacle, near `reference` [B, R, 2, A].
        """
        ...

    def margin(self, y: Tensor, scene: Scene) -> Tensor:
        """[B, R], at least 0 where the rows y ([B, R, A] or [B, R, 2, A]) are allowed.

        It must not change by more than the rows do: a bound on the error of the rows is taken off it.
        """
        ...
