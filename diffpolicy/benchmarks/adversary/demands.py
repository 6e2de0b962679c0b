"""What the adversaries try to break: limits as declared to the library, and as judged on the executed motion.

Shape legend: B robots, N milliseconds, M obstacles.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from diffpolicy.benchmarks.adversary.servo import MS, Servo
from diffpolicy.benchmarks.adversary.solids import Solids
from diffpolicy.constraints.constraint import Constraint, Prox, Quantity, Scene
from diffpolicy.constraints.limits import Box, NormLimit
from diffpolicy.constraints.planar.keep_out import KeepOut

Array = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


class Within:
    """A user's own constraint: the motion stays within a disc (x, y, radius). Its margin works in place."""

    quantity = Quantity("motion")

    def __init__(self, x: float, y: float, radius: float) -> None:
        self._center, self._radius = torch.tensor([x, y], dtype=torch.float64), radius

    def prox(self, reference: Tensor, scene: Scene) -> Prox:
        center = self._center.to(reference)

        def project(y: Tensor) -> Tensor:
            off = y - center
            return center + off * (self._radius / off.norm(dim=-1, keepdim=True).clamp(min=self._radius))

        return project

    def margin(self, y: Tensor, scene: Scene) -> Tensor:
        y -= self._center.to(y)
        return self._radius - y.norm(dim=-1)


class Beside:
    """A user's own constraint: the motion stays where normal . y <= offset, for a unit normal."""

    quantity = Quantity("motion")

    def __init__(self, x: float, y: float, offset: float) -> None:
        self._normal, self._offset = torch.tensor([x, y], dtype=torch.float64), offset

    def prox(self, reference: Tensor, scene: Scene) -> Prox:
        normal = self._normal.to(reference)
        return lambda y: y - (y @ normal - self._offset).clamp(min=0.0)[..., None] * normal

    def margin(self, y: Tensor, scene: Scene) -> Tensor:
        return self._offset - y @ self._normal.to(y)


@dataclass(frozen=True)
class Limits:
    """Limits in units and seconds; None means no limit.

    Attributes:
        distance: of the motion from obstacles.
        speed, acceleration: of the motion; accelerations are second differences over sub-steps.
        workspace: [low, high] on both axes, of the motion.
        targets, target_speed, target_acceleration: of the commands.
        within, beside: a user's own constraints on the motion.
    """

    distance: float | None = None
    speed: float | None = None
    acceleration: float | None = None
    workspace: tuple[float, float] | None = None
    targets: tuple[float, float] | None = None
    target_speed: float | None = None
    target_acceleration: float | None = None
    within: tuple[float, float, float] | None = None
    beside: tuple[float, float, float] | None = None

    def constraints(self) -> list[Constraint]:
        """The limits as the library's constraints. Users' own come first."""
        made: list[Constraint] = []
        if self.within is not None:
            made.append(Within(*self.within))
        if self.beside is not None:
            made.append(Beside(*self.beside))
        boxes = ((self.workspace, "motion"), (self.targets, "commands"))
        made += [Box(*box, Quantity(acts_on)) for box, acts_on in boxes if box is not None]  # pyright: ignore[reportArgumentType]
        norms = (
            (self.speed, Quantity("motion", 1)),
            (self.acceleration, Quantity("motion", 2)),
            (self.target_speed, Quantity("commands", 1)),
            (self.target_acceleration, Quantity("commands", 2)),
        )
        made += [NormLimit(limit, quantity) for limit, quantity in norms if limit is not None]
        if self.distance is not None:
            made.append(KeepOut(self.distance))
        return made

    def excess_of_motion(self, servo: Servo, positions: Array, velocities: Array) -> dict[str, Array]:
        """By how much the motion [B, 1 + N, 2] exceeds each limit but the distance, [B, 1 + N] each."""
        found: dict[str, Array] = {}
        if self.speed is not None:
            found["speed"] = np.linalg.norm(velocities, axis=-1) - self.speed
        if self.acceleration is not None:
            step_s = MS * servo.substep_ms
            rate = np.diff(positions[:, :: servo.substep_ms], n=2, axis=1) / step_s**2
            found["acceleration"] = np.full(positions.shape[:2], -np.inf)
            found["acceleration"][:, 2 * servo.substep_ms :: servo.substep_ms] = (
                np.linalg.norm(rate, axis=-1) - self.acceleration
            )
        return found | self.excess_of_position(positions)

    def excess_of_position(self, positions: Array) -> dict[str, Array]:
        """By how much positions [..., 2] exceed each limit on them but the distance, [...] each."""
        found: dict[str, Array] = {}
        if self.workspace is not None:
            low, high = self.workspace
            found["workspace"] = np.maximum(low - positions, positions - high).max(-1)
        if self.within is not None:
            x, y, radius = self.within
            found["within"] = np.linalg.norm(positions - [x, y], axis=-1) - radius
        if self.beside is not None:
            x, y, offset = self.beside
            found["beside"] = positions @ np.array([x, y]) - offset
        return found

    def excess_of_targets(self, sent: Array, period_s: float) -> dict[str, Array]:
        """By how much the last of the commands [B, 4, 2] exceeds each limit on commands, [B] each."""
        found: dict[str, Array] = {}
        if self.targets is not None:
            low, high = self.targets
            found["targets"] = np.maximum(low - sent[:, -1], sent[:, -1] - high).max(-1)
        for name, limit, order in (
            ("target_speed", self.target_speed, 1),
            ("target_acceleration", self.target_acceleration, 2),
        ):
            if limit is not None:
                rate = np.diff(sent, n=order, axis=1)[:, -1] / period_s**order
                found[name] = np.linalg.norm(rate, axis=-1) - limit
        return found

    def excess_of_distance(
        self, positions: Array, solids: Solids, ends: Solids, share: Array, is_at_rest: Flags
    ) -> Array:
        """By how much robots [B, 1 + N, 2] come too close to any obstacle, [B, 1 + N].

        Obstacles have moved by `share` [B, 1 + N] of the way from `solids` to `ends`. Those that may move do not count
        while a robot is at rest.
        """
        if self.distance is None:
            return np.full(share.shape, -np.inf)
        drift = (ends.vertices - solids.vertices).mean(2)  # they do not turn: see the robot from each obstacle
        gaps: list[Array] = []
        for slot in range(solids.radius.shape[1]):
            one = Solids(*(part[:, slot : slot + 1] for part in vars(solids).values()))
            gaps.append(one.distance(positions - share[..., None] * drift[:, None, slot]))
        gap = np.concatenate(gaps, -1) - share[..., None] * (ends.radius - solids.radius)[:, None]
        excused = is_at_rest[..., None] & (solids.speed > 0)[:, None]
        return self.distance - np.where(excused, np.inf, gap).min(-1)


def rests(servo: Servo, positions: Array, velocities: Array, rest_speed: float) -> Flags:
    """[B, 1 + N], whether a robot is at rest: both ends of the sub-step and its mean are no faster."""
    last = positions.shape[1] - 1
    begin = np.arange(0, last, servo.substep_ms)
    end = np.minimum(begin + servo.substep_ms, last)
    mean = np.linalg.norm(positions[:, end] - positions[:, begin], axis=-1) / (MS * (end - begin))
    speed = np.linalg.norm(velocities, axis=-1)
    resting = np.maximum(mean, np.maximum(speed[:, begin], speed[:, end])) <= rest_speed  # [B, sub-steps]
    rows = np.arange(last + 1)
    before, after = np.maximum(rows - 1, 0) // servo.substep_ms, np.minimum(rows, last - 1) // servo.substep_ms
    return resting[:, before] & resting[:, after]
