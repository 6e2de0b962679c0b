"""What safety is asked for."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from diffpolicy.constraints.assumptions import Assumptions
from diffpolicy.constraints.constraint import Constraint
from diffpolicy.constraints.planar.obstacles import Obstacles, together
from diffpolicy.constraints.plant import LinearPlant

MODES = ("none", "clip", "last", "last_half", "every_step")


@dataclass(frozen=True)
class Safety:
    """What is demanded of the robots, what is taken for granted, and how plans are brought to meet it.

    Attributes:
        constraints: to be met together. There are no default limits: what is not declared is not constrained.
        plant: from commands to motion; needed by constraints on the motion.
        assumptions: A1 to A5 of docs/safety.md.
        mode: the reverse steps whose clean estimate is projected: none, clip (to boxes on commands, at the end),
            last, last_half or every_step.
        candidates: samples drawn at most; the further ones only where the first is not certified, moved far or barred.
        slots: for obstacles of a robot that are reported at run time.
        zones: obstacles that every robot has, known beforehand, [1, M, ...].
        period_s: seconds from command to command.
        iterations: of the projection at a reverse step.
        polish_rounds: of the plan that leaves the loop, at most, POLISH_ITERATIONS each.
        certify: False sends plans as they are: for comparisons only.

    Raises:
        ValueError: an unknown mode, numbers out of range, a plant of another period.
    """

    constraints: Sequence[Constraint]
    plant: LinearPlant | None = None
    assumptions: Assumptions = field(default_factory=Assumptions)
    mode: str = "last_half"
    candidates: int = 1
    slots: int = 6
    zones: Obstacles | None = None
    period_s: float = 0.1
    iterations: int = 4
    polish_rounds: int = 8
    certify: bool = True

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"safety: mode {self.mode!r} must be one of {', '.join(MODES)}")
        if self.candidates < 1 or self.slots < 0 or self.iterations < 1 or self.polish_rounds < 0:
            raise ValueError(
                f"safety: candidates {self.candidates} and iterations {self.iterations} must be at least 1, "
                f"slots {self.slots} and polish_rounds {self.polish_rounds} at least 0"
            )
        if not 0.0 < self.period_s < float("inf"):
            raise ValueError(f"safety: period_s {self.period_s} must be finite and above 0")
        a = self.assumptions
        if self.plant is not None and a.latency_s > a.delay_substeps * self.plant.substep_s + 1e-9:
            raise ValueError(
                f"safety: latency_s {a.latency_s} is a delay of more than delay_substeps {a.delay_substeps}; raise that"
            )
        if self.plant is not None and abs(self.plant.period_s - self.period_s) > 1e-9:
            raise ValueError(f"safety: period_s {self.period_s}, but the plant's is {self.plant.period_s}")

    @property
    def all_slots(self) -> int:
        """Obstacles of a robot at most."""
        return self.slots + (self.zones.slots if self.zones else 0)

    def with_zones(self, obstacles: Obstacles) -> Obstacles:
        """These obstacles [B, M, ...] and, for every robot, the zones."""
        if self.zones is None:
            return obstacles
        return together([obstacles, self.zones.robots(torch.zeros(len(obstacles.radius), dtype=torch.long))])

    @property
    def acts_on_motion(self) -> bool:
        """Whether a constraint needs to know where the robot is and how fast it moves."""
        return any(constraint.quantity.acts_on == "motion" for constraint in self.constraints)
