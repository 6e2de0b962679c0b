"""Safety settings: constraints, assumptions, and how plans are made to meet them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from diffpolicy.constraints.assumptions import Assumptions
from diffpolicy.constraints.constraint import Constraint
from diffpolicy.constraints.planar.obstacles import LARGEST, Obstacles, together
from diffpolicy.constraints.plant import LinearPlant
from diffpolicy.constraints.trajectory import needed

IMPOSSIBLE = f"is not a convex polygon with corners in order, radius and speed at least 0, numbers up to {LARGEST:g}"
MODES = ("none", "clip", "last", "last_half", "every_step")


@dataclass(frozen=True)
class Safety:
    """What robots must comply with, what is assumed, and how plans are made to comply.

    Attributes:
        constraints: the constraints to meet together. There are no default limits: only declared quantities are
            constrained.
        plant: the model from commands to motion; required by constraints on the motion.
        assumptions: A1 to A5 of docs/safety.md.
        mode: which reverse steps have their clean estimate projected: none, clip (only to boxes on commands, at the
            end), last, last_half or every_step.
        candidates: the largest number of samples per chunk. Further samples are drawn only if the first one is not
            certified, was moved far or is blocked.
        slots: the largest number of obstacles reported per robot at run time.
        zones: [1, M, ...], obstacles that are known in advance and apply to every robot.
        period_s: seconds from command to command. By default the plant's; required without a plant.
        iterations: iterations of the projection at each reverse step.
        polish_rounds: the largest number of rounds, POLISH_ITERATIONS each, that refine the plan after the last reverse
            step.
        certify: whether plans are certified. False sends them as they are; use it for comparisons only.

    Raises:
        ValueError: the mode is unknown, a number is out of range, or the plant has a different period.
    """

    constraints: Sequence[Constraint]
    plant: LinearPlant | None = None
    assumptions: Assumptions = field(default_factory=Assumptions)
    mode: str = "last_half"
    candidates: int = 1
    slots: int = 6
    zones: Obstacles | None = None
    period_s: float | None = None
    iterations: int = 4
    polish_rounds: int = 8
    certify: bool = True

    def __post_init__(self) -> None:
        _check_constraints(self.constraints)
        if self.mode not in MODES:
            raise ValueError(f"safety: mode {self.mode!r} must be one of {', '.join(MODES)}")
        if self.candidates < 1 or self.slots < 0 or self.iterations < 1 or self.polish_rounds < 0:
            raise ValueError(
                f"safety: candidates {self.candidates} and iterations {self.iterations} must be at least 1, "
                f"slots {self.slots} and polish_rounds {self.polish_rounds} at least 0"
            )
        if self.plant is None and self.period_s is None:
            raise ValueError("safety: period_s is missing; give the seconds from command to command, or a plant")
        if not 0.0 < self.tick_s < float("inf"):
            raise ValueError(f"safety: period_s {self.period_s} must be finite and above 0")
        a = self.assumptions
        if self.plant is not None and a.latency_s > a.delay_substeps * self.plant.substep_s + 1e-9:
            raise ValueError(
                f"safety: latency_s {a.latency_s} is a delay of more than delay_substeps {a.delay_substeps}; raise it"
            )
        if self.plant is not None and abs(self.plant.period_s - self.tick_s) > 1e-9:
            raise ValueError(f"safety: period_s {self.period_s}, but the plant's is {self.plant.period_s}")

    @property
    def tick_s(self) -> float:
        """Seconds from command to command."""
        return self.period_s if self.period_s is not None else needed(self.plant).period_s

    @property
    def all_slots(self) -> int:
        """The largest number of obstacles per robot, zones included."""
        return self.slots + (self.zones.slots if self.zones else 0)

    def unusable(self, obstacles: Obstacles) -> dict[int, str]:
        """{robot: why} for robots with more obstacles than slots and zones, or some that cannot be.

        One of NaN can: it was not measured.
        """
        zones = self.all_slots - self.slots
        found: dict[int, str] = {}
        if not bool(obstacles.is_known.all()):
            cannot_be = ~obstacles.is_known & ~obstacles.is_nan
            found = {i: f"obstacles: slot {slot} {IMPOSSIBLE}" for i, slot in cannot_be.nonzero().tolist()}
        if obstacles.slots > self.all_slots:
            count = (obstacles.is_used.sum(1) - zones).tolist()
            for i, given in enumerate(count):
                if given > self.slots:
                    found[i] = f"obstacles: {given} given, expected at most {self.slots} (slots)"
        return found

    def with_zones(self, obstacles: Obstacles) -> Obstacles:
        """These obstacles [B, M, ...] together with the zones, for every robot."""
        if self.zones is None:
            return obstacles
        return together([obstacles, self.zones.robots(torch.zeros(len(obstacles.radius), dtype=torch.long))])

    @property
    def acts_on_motion(self) -> bool:
        """Whether a constraint needs the robot's position and velocity."""
        return any(constraint.quantity.acts_on == "motion" for constraint in self.constraints)


def _check_constraints(constraints: Any) -> None:
    if not isinstance(constraints, Sequence):
        raise ValueError(f"safety: constraints is a {type(constraints).__name__}, expected a list of constraints")
    for index, one in enumerate(constraints):
        missing = [name for name in ("quantity", "prox", "margin") if not hasattr(one, name)]
        if missing or isinstance(one, type):
            kind = f"the class {one.__name__}" if isinstance(one, type) else f"a {type(one).__name__}"
            found = f"{kind} without {missing[0]}" if missing else kind
            raise ValueError(
                f"safety: constraints[{index}] is {found}, expected an object with quantity, prox and margin"
            )
