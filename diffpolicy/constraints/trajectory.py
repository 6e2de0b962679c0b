"""Trajectories: the quantities that constraints bound, from commands or from the motion that they cause.

Shape legend: B batch, T ticks, R rows, A action.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from diffpolicy.constraints.constraint import Quantity
from diffpolicy.constraints.plant import LinearPlant, State
from diffpolicy.constraints.vectors import length

PAST_COMMANDS = 3  # a jerk needs this many


@dataclass(frozen=True)
class Start:
    """What is known about the robots at the present moment.

    Attributes:
        state: the measured state, or an assumed one if no constraint acts on the motion.
        commands: [B, 3, A], the last commands sent, oldest first.
    """

    state: State
    commands: Tensor

    def robots(self, index: Tensor) -> "Start":
        """The start of the robots `index`."""
        state = State(self.state.position[index], self.state.velocity[index])
        return Start(state, self.commands[index])

    def to(self, like: Tensor) -> "Start":
        """The start on the device and with the dtype of `like`."""
        state = State(self.state.position.to(like), self.state.velocity.to(like))
        return Start(state, self.commands.to(like))


@dataclass(frozen=True)
class Trajectory:
    """Commands [B, T, A] from a start, and the motion that they cause, which is computed once.

    Attributes:
        plant: the plant; required for quantities of the motion.
        period_s: seconds from command to command.
    """

    commands: Tensor
    start: Start
    plant: LinearPlant | None
    period_s: float

    def quantity(self, quantity: Quantity) -> Tensor:
        """The rows of this quantity: [B, R, A], or segments [B, R, 2, A]. They are linear in commands and start.

        Raises:
            ValueError: the quantity is one of the motion, but there is no plant.
        """
        if quantity.acts_on == "commands":
            past, path, step_s = PAST_COMMANDS, self._sent, self.period_s
        else:
            past, path, step_s = 1, self.motion[0], needed(self.plant).substep_s
            if quantity.order > 1:
                past, path = PAST_COMMANDS, torch.cat([self._past_positions, path], dim=1)
        if quantity.segments:
            return path[:, past - 1 :].unfold(1, 2, 1).mT  # a view: neighbours share their ends
        for _ in range(quantity.order):
            path = path.diff(dim=1) / step_s
        return path[:, past - quantity.order :]

    def times_s(self, quantity: Quantity) -> Tensor:
        """[R], when each row is reached, in seconds from the present."""
        ticks = self.commands.shape[1]
        if quantity.acts_on == "commands":
            return self.period_s * torch.arange(1, ticks + 1, dtype=torch.float64)
        plant = needed(self.plant)
        return plant.substep_s * torch.arange(1, ticks * plant.substeps + 1, dtype=torch.float64)

    @cached_property
    def motion(self) -> tuple[Tensor, Tensor]:
        """Positions and velocities [B, 1 + R, A], at the present and at the end of every sub-step."""
        return needed(self.plant).path(self.commands, self.start.state)

    @cached_property
    def bulge(self) -> Tensor:
        """[B, R], how far the path of each sub-step may be from the segment between its ends.

        Along the segment it does not pass the ends, unless it may turn round between them.
        """
        flow, position = needed(self.plant).flow, self.motion[0]
        along = position.diff(dim=1)
        if flow is None:
            return along.new_zeros(along.shape[:2])
        size = length(along)[..., None]
        along = along / size.clamp(min=1e-300)
        pull, across = self._seen(flow.accelerations), along.new_zeros(along.shape[:2])
        for one in pull:
            across = across.maximum(length(one - torch.linalg.vecdot(one, along)[..., None] * along))
        rates = [torch.linalg.vecdot(one, along) for one in self._seen(flow.rates)]
        sag = 4.0 * flow.sag * self._largest(flow.jolts)
        goes_on = (torch.minimum(*rates) >= 0.0) & (torch.maximum(*rates) >= sag) & (size[..., 0] > 0.0)
        whole = length(torch.stack(pull)).amax(0)
        return flow.bulge * torch.where(goes_on, across, whole)

    @cached_property
    def velocities(self) -> tuple[Tensor, Tensor]:
        """Velocities [B, K * R, A] that occur in the sub-steps, K of each, and [B, R], how far others may be from them.

        Any other velocity in a sub-step lies that close to the segment between two of these.
        """
        position, velocity = self.motion
        plant = needed(self.plant)
        parts = [position.diff(dim=1) / plant.substep_s, velocity[:, 1:]]
        if plant.flow is None:
            return torch.cat(parts, dim=1), position.new_zeros(len(position), parts[0].shape[1])
        parts += self._seen(plant.flow.speeds)
        return torch.cat(parts, dim=1), plant.flow.excess * self._largest(plant.flow.jerks)

    def _largest(self, rows: Tensor) -> Tensor:
        """[B, R], the largest of what the rows [P, 2] give in each sub-step."""
        return torch.stack([length(one) for one in self._seen(rows)]).amax(0)

    def _seen(self, rows: Tensor) -> list[Tensor]:
        """What the rows [P, 2] give of the state at the start of each sub-step, [B, R, A] each."""
        position, velocity = self.motion
        held = self.commands.repeat_interleave(needed(self.plant).substeps, dim=1)
        off, moving = position[:, :-1] - held, velocity[:, :-1]
        return [by_offset * off + by_velocity * moving for by_offset, by_velocity in rows.tolist()]

    @cached_property
    def _sent(self) -> Tensor:
        return torch.cat([self.start.commands, self.commands], dim=1)

    @property
    def _past_positions(self) -> Tensor:
        """[B, 2, A], the positions at the two sub-steps before the present."""
        plant, state = needed(self.plant), self.start.state
        past: list[Tensor] = []
        for ago in range(PAST_COMMANDS - 1):  # sub-steps
            state = plant.before(state, self.start.commands[:, -1 - ago // plant.substeps])
            past.insert(0, state.position)
        return torch.stack(past, dim=1)


def needed(plant: LinearPlant | None) -> LinearPlant:
    """Return the plant. Raise ValueError if there is none."""
    if plant is None:
        raise ValueError("constraints: one acts on the executed motion, which needs a plant; pass plant=")
    return plant
