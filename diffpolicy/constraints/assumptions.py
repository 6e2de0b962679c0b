"""The assumptions of a certificate, and how far they let the true motion be from the predicted one.

Shape legend: B batch, T ticks, R = T * substeps, A action.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from diffpolicy.constraints.plant import LinearPlant
from diffpolicy.constraints.trajectory import PAST_COMMANDS, Start
from diffpolicy.constraints.vectors import length

PAST_CHANGES = PAST_COMMANDS - 1  # known changes of the command before the present


@dataclass(frozen=True)
class Assumptions:
    """Bounds on errors and delays, as Euclidean norms in units of position (units/s for velocities).

    By default, everything is exact.

    Attributes:
        position_error, velocity_error: bounds on the error of the measured state (A1).
        tracking_error, tracking_velocity_error: bounds on how much further the true motion may be from the plant's
            (A2).
        rest_speed: a robot that moves no faster than this counts as standing still for moving obstacles (A3). With 0,
            no plan among moving obstacles is certified.
        delay_substeps: an action takes effect at most this many sub-steps after its tick. Each action may have a
            different delay (A5).
        latency_s: how much later than its tick a call may come; after that the plan is stale (A5). It is part of the
            delay, so it may be at most delay_substeps long.
        tolerance: predicted and measured states (positions, and velocities in units/s), or obstacles, that differ by
            less than this are the same. It covers rounding only: the default suits pixels, 1e-6 suits metres.

    Raises:
        ValueError: a number is negative or not finite, or rest_speed is below tracking_velocity_error (but not 0).
    """

    position_error: float = 0.0
    velocity_error: float = 0.0
    tracking_error: float = 0.0
    tracking_velocity_error: float = 0.0
    rest_speed: float = 0.0
    delay_substeps: int = 0
    latency_s: float = 0.0
    tolerance: float = 1e-3

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"assumptions: {name} {value} must be finite and at least 0")
        if 0 < self.rest_speed < self.tracking_velocity_error:
            raise ValueError(
                f"assumptions: rest_speed {self.rest_speed} is below tracking_velocity_error "
                f"{self.tracking_velocity_error}, so no robot would ever be at rest"
            )

    @property
    def is_exact(self) -> bool:
        """Whether the motion is exactly the predicted one."""
        errors = (self.position_error, self.velocity_error, self.tracking_error, self.tracking_velocity_error)
        return not any(errors) and self.delay_substeps == 0

    def tubes(self, plant: LinearPlant, commands: Tensor, start: Start) -> tuple[Tensor, Tensor]:
        """How far position and velocity can be off in every sub-step after its start, [B, R] each.

        For velocity, the bound covers both the plant's velocity and the mean over the sub-step. By linearity the errors
        add up: those of the start state, of the tracking, and of every command change that may come late.
        """
        batch, ticks, _ = commands.shape
        both = _fixed_tube(self, plant, ticks).to(commands).flatten().expand(batch, -1)
        if self.delay_substeps:
            path = torch.cat([start.commands, commands], dim=1)
            changes = length(path.diff(dim=1))  # [B, 2 + T]
            late = _late_response(plant, ticks, self.delay_substeps).to(commands)  # [2, R, 2 + T]
            both = both + torch.matmul(changes, late.flatten(0, 1).mT)
        position, velocity = both.chunk(2, dim=1)
        return position, velocity


@lru_cache(maxsize=16)
def _fixed_tube(assumptions: Assumptions, plant: LinearPlant, ticks: int) -> Tensor:
    """[2, R], the effect of errors of the start state and of the tracking on position and velocity."""
    _, free = plant.responses(ticks)
    mean = free[0].diff(dim=0, prepend=free.new_tensor([[1.0, 0.0]])) / plant.substep_s
    bound = torch.stack([free[0].abs(), torch.maximum(free[1].abs(), mean.abs())])
    free = _within(plant, bound, plant.free_states(len(mean)))
    tracking = free.new_tensor([assumptions.tracking_error, assumptions.tracking_velocity_error])
    return free[..., 0] * assumptions.position_error + free[..., 1] * assumptions.velocity_error + tracking[:, None]


@lru_cache(maxsize=16)
def _late_response(plant: LinearPlant, ticks: int, delay: int) -> Tensor:
    """The largest effect on position and velocity of a unit change of the command that comes up to `delay` late.

    [2, R, 2 + T]: for changes in the two ticks before the present, which may not have taken full effect yet, and for
    changes in each tick from the present on.
    """
    rows = plant.substeps * ticks
    forced, _ = plant.responses(ticks)
    now = rows + delay + 1
    step = torch.cat([torch.zeros(2, now, dtype=torch.float64), forced.sum(-1)], dim=1)  # at 1 - now ... rows
    late = torch.zeros(2, rows, PAST_CHANGES + ticks, dtype=torch.float64)
    for change in range(PAST_CHANGES + ticks):
        ago = plant.substeps * (PAST_CHANGES - change)  # sub-steps from the change to the present
        for later in range(1, delay + 1 - max(ago, 0)):
            begin = now + min(ago, 0) - 1  # the present
            off = step[:, begin : begin + rows + 1] - step[:, begin - later : begin - later + rows + 1]
            mean = off[0].diff() / plant.substep_s
            bound = torch.stack([off[0, 1:].abs(), torch.maximum(off[1, 1:].abs(), mean.abs())])
            since = min(ago, 0) + torch.arange(rows)  # sub-steps since the change, at the start of each
            pending = ((since >= 0) & (since < later)).double()
            states = torch.stack([off[0, :-1] - pending, off[1, :-1]], dim=-1)
            late[..., change] = torch.maximum(late[..., change], _within(plant, bound, states))
        late[..., change] += 2.0 * _between_substeps(plant, rows, min(ago, 0), delay - max(ago, 0))
    return late


def _between_substeps(plant: LinearPlant, rows: int, since: int, delay: int) -> Tensor:
    """[2, R], how far a step response is from its chords, in every sub-step and in the `delay` ones before it.

    A delay of a broken number of sub-steps may add this twice to those of the whole numbers around it.

    Args:
        since: sub-steps from the change to the present.
    """
    off = torch.zeros(2, rows, dtype=torch.float64)
    if plant.flow is None or delay < 1:
        return off
    states = plant.free_states(rows)[:, 0]
    pieces = (len(plant.flow.jerks) - 1) ** 2
    jerk = (states @ plant.flow.jerks.mT).abs().amax(-1)
    inside = torch.stack([plant.flow.bulge_of(states), pieces * plant.flow.excess * jerk])  # from the change on
    for later in range(delay + 2):
        begin = later - since  # the row of the change, that much later
        off[:, begin:] = off[:, begin:].maximum(inside[:, : max(rows - begin, 0)])
    return off


def _within(plant: LinearPlant, bound: Tensor, states: Tensor) -> Tensor:
    """Bounds [2, R, ...] at the ends of sub-steps, extended to their insides. `states` are those at their starts."""
    if plant.flow is None:
        return bound
    return torch.stack([bound[0] + plant.flow.bulge_of(states), bound[1].maximum(plant.flow.speed_of(states))])
