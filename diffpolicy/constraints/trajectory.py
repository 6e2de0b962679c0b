"""From commands to the rows that a constraint looks at: differences of the commands, or the motion they cause.

Shape legend: B batch, T ticks, R rows, A action.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from diffpolicy.constraints.constraint import Rows
from diffpolicy.constraints.plant import LinearPlant, State

PAST_COMMANDS = 3  # as many as a jerk needs


@dataclass(frozen=True)
class Start:
    """What is known of the robots at the present moment.

    Attributes:
        state: measured, or assumed where no constraint acts on the motion.
        commands: the last ones sent, oldest first, [B, 3, A].
    """

    state: State
    commands: Tensor

    def rows(self, index: Tensor) -> "Start":
        """Of the robots `index`."""
        state = State(self.state.position[index], self.state.velocity[index])
        return Start(state, self.commands[index])

    def to(self, like: Tensor) -> "Start":
        """On the device and of the type of `like`."""
        state = State(self.state.position.to(like), self.state.velocity.to(like))
        return Start(state, self.commands.to(like))


def rows_of(rows: Rows, plant: LinearPlant | None, period_s: float, commands: Tensor, start: Start) -> Tensor:
    """The rows [B, R, A] (segments: [B, R, 2, A]) of commands [B, T, A]; affine in commands and start.

    Raises:
        ValueError: rows of the motion without a plant.
    """
    if rows.acts_on == "commands":
        path, step_s = torch.cat([start.commands, commands], dim=1), period_s
    else:
        path, step_s = _motion(needed(plant), commands, start), needed(plant).substep_s
    if rows.segments:
        return torch.stack([path[:, PAST_COMMANDS - 1 : -1], path[:, PAST_COMMANDS:]], dim=2)
    for _ in range(rows.order):
        path = path.diff(dim=1) / step_s
    return path[:, PAST_COMMANDS - rows.order :]


def needed(plant: LinearPlant | None) -> LinearPlant:
    """The plant; ValueError where there is none."""
    if plant is None:
        raise ValueError("constraints: one acts on the executed motion, which needs a plant; give plant=")
    return plant


def row_times_s(rows: Rows, plant: LinearPlant | None, period_s: float, ticks: int) -> Tensor:
    """When each row is reached, seconds from the present [R]."""
    if rows.acts_on == "commands":
        return period_s * torch.arange(1, ticks + 1, dtype=torch.float64)
    plant = needed(plant)
    return plant.substep_s * torch.arange(1, ticks * plant.substeps + 1, dtype=torch.float64)


def _motion(plant: LinearPlant, commands: Tensor, start: Start) -> Tensor:
    """Positions at the two sub-steps before the present, the present and after it [B, 3 + R, A]."""
    past, state = [start.state.position], start.state
    for ago in range(PAST_COMMANDS - 1):  # sub-steps
        state = plant.before(state, start.commands[:, -1 - ago // plant.substeps])
        past.insert(0, state.position)
    positions, _ = plant.motion(commands, start.state)
    return torch.cat([torch.stack(past, dim=1), positions], dim=1)
