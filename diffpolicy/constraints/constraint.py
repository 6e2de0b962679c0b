"""The constraint protocol: the quantity that a constraint bounds, its projection and its margin.

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
"""Maps rows to the nearest rows of a convex set, of the same shape."""


@dataclass(frozen=True)
class Quantity:
    """The physical quantity that a constraint bounds. A trajectory provides it as rows [R, A].

    Attributes:
        acts_on: "commands", with one row per tick, or "motion", the executed motion, with one row per sub-step.
        order: 0 for positions, 1 for velocities, 2 for accelerations, 3 for jerks. Orders above 0 are differences of
            positions over time; the first ones reach back before the plan (to the last commands, or to the measured
            state). Positions and velocities of the motion are certified within the sub-steps too; accelerations and
            jerks are means over two and three sub-steps, and may be larger in between.
        segments: whether the rows are segments [R, 2, A], each from the previous position to the next one. The first
            segment starts at the present position. Requires order 0.
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
            raise ValueError(f"quantity: segments are of positions, order 0, not {self.order}")


@dataclass(frozen=True)
class Scene:
    """What a constraint sees besides the rows.

    Attributes:
        obstacles: the obstacles of each robot at time 0, the present.
        time_s: [R], when each row is reached. All segments last as long as the first one, which starts at time 0.
        at_rest: [B, R], whether the robot stands still, so that contact with a moving obstacle is not the plan's fault.
            None if no contact is excused.
        error: how far the rows may be off, one number for all or [B, 1, R]. A margin above it need not be exact: a
            lower bound that is also above it is enough.
    """

    obstacles: Obstacles
    time_s: Tensor
    at_rest: Tensor | None = None
    error: Tensor | float = math.inf

    @cached_property
    def radius(self) -> Tensor:
        """[B, M, R], the radius of the rounded obstacles when each row is reached, grown to allow for their motion."""
        return self._grown(self.time_s)

    @cached_property
    def radius_before(self) -> Tensor:
        """[B, M, R], the same when the segment to each row begins."""
        return self._grown(self.time_s - self.time_s[:1])

    def robots(self, index: Tensor) -> "Scene":
        """The scene of the robots `index`."""
        at_rest = None if self.at_rest is None else self.at_rest[index]
        error = self.error[index] if isinstance(self.error, Tensor) else self.error
        return Scene(self.obstacles.robots(index), self.time_s, at_rest, error)

    def _grown(self, time_s: Tensor) -> Tensor:
        obstacles = self.obstacles
        return obstacles.radius[..., None] + obstacles.speed[..., None] * time_s.to(obstacles.speed)


class Constraint(Protocol):
    """A set of allowed plans. Any class with these three members is a constraint.

    The projection uses `prox` and may fall short. The certificate uses `margin` and decides.

    A constraint of a user's class gets copies, so it may work in place. If it raises, only the robots whose rows make
    it raise get no certificate, and `PlanReport.reason` tells why. A margin that is NaN certifies nothing.
    """

    @property
    def quantity(self) -> Quantity: ...

    def prox(self, reference: Tensor, scene: Scene) -> Prox:
        """The Euclidean projection of rows [B, R, A] onto the set, or onto a convex part of it near `reference`.

        For segments, the rows are [B, M, R, 2, A], with one copy per obstacle, and `reference` is [B, R, 2, A].
        """
        ...

    def margin(self, y: Tensor, scene: Scene) -> Tensor:
        """[B, R], floating, at least 0 where the rows y ([B, R, A] or [B, R, 2, A]) are allowed.

        Bools and other shapes are refused with a `ContractError`. The margin must not change by more than the rows do,
        because the certificate subtracts a bound on their error from it. A margin of velocities of the motion must be
        at least the lesser one of two rows on the segment between them, as that of a convex set is.
        """
        ...
