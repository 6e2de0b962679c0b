"""Trajectories: the quantities that constraints bound, from commands or from the motion that they cause.

Shape legend: B batch, T ticks, R rows, A action.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache

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

    def robots(self, index: Tensor) -> "Trajectory":
        """The trajectories of the robots `index`."""
        return Trajectory(self.commands[index], self.start.robots(index), self.plant, self.period_s)

    @cached_property
    def inside(self) -> tuple[Tensor, Tensor]:
        """[B, R] each, upper bounds of `bulge` and `excess` that are quick to compute."""
        plant = needed(self.plant)
        changes = torch.cat(
            [self.commands[:, :1] - self.start.state.position[:, None], self.commands.diff(dim=1)], dim=1
        )
        causes = torch.cat([length(changes), length(self.start.state.velocity)[:, None]], dim=1)
        bulge, excess = (causes @ _inside(plant, self.commands.shape[1]).to(causes)).chunk(2, dim=1)
        return bulge, excess

    @property
    def bulge(self) -> Tensor:
        """[B, R], how far the path of each sub-step may be from the segment between its ends.

        Along the segment it does not pass the ends, unless it may turn round between them.
        """
        flow, along = needed(self.plant).flow, self.motion[0].diff(dim=1)
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

    @property
    def excess(self) -> Tensor:
        """[B, R], how far a velocity in a sub-step may be from the segments between those in `velocities`."""
        flow = needed(self.plant).flow
        if flow is None:
            return self.commands.new_zeros(len(self.commands), self.motion[0].shape[1] - 1)
        return flow.excess * self._largest(flow.jerks)

    @cached_property
    def velocities(self) -> list[Tensor]:
        """Velocities [B, R, A] that occur in each sub-step: the mean, and those of the flow between start and end.

        The velocities at the ends are those of `motion`. The mean is left out if it is the velocity at the end.
        """
        plant, position = needed(self.plant), self.motion[0]
        mean = [] if plant.mean_is_at_the_end else [position.diff(dim=1) / plant.substep_s]
        return mean if plant.flow is None else mean + self._seen(plant.flow.speeds[1:-1])

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


@lru_cache(maxsize=16)
def _inside(plant: LinearPlant, ticks: int) -> Tensor:
    """[T + 1, 2 R], bulge and excess in every sub-step per unit of each command change, and of the first velocity."""
    rows = plant.substeps * ticks
    found = torch.zeros(ticks + 1, 2, rows, dtype=torch.float64)
    if plant.flow is None:
        return found.flatten(1)
    states = plant.free_states(rows)  # [R, 2, 2]
    jerk = (states @ plant.flow.jerks.mT).abs().amax(-1)
    free = torch.stack([plant.flow.bulge_of(states), plant.flow.excess * jerk]).movedim(-1, 0)  # [2, 2, R]
    for tick in range(ticks):
        begin = plant.substeps * tick
        found[tick, :, begin:] = free[0, :, : rows - begin]
    found[-1] = free[1]
    return found.flatten(1)


def needed(plant: LinearPlant | None) -> LinearPlant:
    """Return the plant. Raise ValueError if there is none."""
    if plant is None:
        raise ValueError("constraints: one acts on the executed motion, which needs a plant; pass plant=")
    return plant
