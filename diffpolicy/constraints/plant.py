"""Plants: linear time-invariant models from commands to motion, the same on every axis.

Shape legend: B batch, T ticks, R = T * substeps, A action. Numbers are float64.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from diffpolicy.constraints.flow import Flow, flow

SETTLE_SUBSTEPS = 10_000  # a plant must come to rest within these; its largest responses are searched in them


@dataclass(frozen=True)
class State:
    """Position and velocity of each robot, [B, A] each, in units and units/s."""

    position: Tensor
    velocity: Tensor


@dataclass(frozen=True)
class LinearPlant:
    """(position, velocity)' = transition (position, velocity) + drive * command, once per sub-step.

    Attributes:
        transition: a [2][2] matrix.
        drive: [2], the effect of the command on position and velocity.
        substep_s: the duration of a sub-step in seconds.
        substeps: the number of sub-steps per command. A command is held for substeps * substep_s seconds.

    Raises:
        ValueError: a number is not finite, or the plant is unstable, cannot be run backwards, or does not come to rest
            at a held command (then no way to stop would ever end).
    """

    transition: tuple[tuple[float, float], tuple[float, float]]
    drive: tuple[float, float]
    substep_s: float
    substeps: int

    def __post_init__(self) -> None:
        if self.substeps < 1 or not self.substep_s > 0:
            raise ValueError(f"plant: substeps {self.substeps} and substep_s {self.substep_s} must be above 0")
        a, b = self._matrices
        if not bool(a.isfinite().all() and b.isfinite().all()):
            raise ValueError("plant: transition and drive must be finite")
        radius = float(torch.linalg.eigvals(a).abs().max())
        if radius >= 1.0 or abs(float(torch.linalg.det(a))) < 1e-9:
            raise ValueError(f"plant: spectral radius {radius:.4f} must be below 1, and transition invertible")
        if radius**SETTLE_SUBSTEPS > 1e-4:
            raise ValueError(
                f"plant: spectral radius {radius:.6f}, so it does not settle in {SETTLE_SUBSTEPS} sub-steps"
            )
        rest = torch.linalg.solve(torch.eye(2, dtype=torch.float64) - a, b)
        if not torch.allclose(rest, torch.tensor([1.0, 0.0], dtype=torch.float64), rtol=0.0, atol=1e-6):
            raise ValueError(f"plant: a held command 1 ends at (position, velocity) {rest.tolist()}, expected (1, 0)")

    @property
    def period_s(self) -> float:
        """Seconds from command to command."""
        return self.substeps * self.substep_s

    def path(self, commands: Tensor, start: State) -> tuple[Tensor, Tensor]:
        """Executed positions and velocities [B, 1 + R, A], at the present and at the end of every sub-step."""
        response = _all_responses(self, commands.shape[1]).to(commands)
        causes = torch.cat([commands, start.position[:, None], start.velocity[:, None]], dim=1)
        both = torch.matmul(causes.mT, response).mT  # one product for all robots
        position, velocity = both.chunk(2, dim=1)
        return position, velocity

    def motion(self, commands: Tensor, start: State) -> tuple[Tensor, Tensor]:
        """Executed positions and velocities [B, R, A] at the end of every sub-step, for commands [B, T, A]."""
        position, velocity = self.path(commands, start)
        return position[:, 1:], velocity[:, 1:]

    def responses(self, ticks: int) -> tuple[Tensor, Tensor]:
        """Responses of position and velocity at every sub-step: [2, R, T] to the commands, [2, R, 2] to the start."""
        return _responses(self, ticks)

    def before(self, start: State, command: Tensor) -> State:
        """The state one sub-step earlier, given that `command` [B, A] was in force."""
        (pp, pv), (vp, vv) = self._backwards
        p, v = start.position - self.drive[0] * command, start.velocity - self.drive[1] * command
        return State(pp * p + pv * v, vp * p + vv * v)

    @property
    def flow(self) -> Flow | None:
        """The motion within a sub-step; None if it is taken as straight."""
        return flow(self.transition, self.substep_s)

    @cached_property
    def mean_is_at_the_end(self) -> bool:
        """Whether the mean velocity of a sub-step is the velocity at its end, as with semi-implicit Euler."""
        (kept, moving), ends = self.transition[0], (*self.transition[1], self.drive[1])
        means = ((kept - 1.0) / self.substep_s, moving / self.substep_s, self.drive[0] / self.substep_s)
        return all(abs(mean - end) <= 1e-12 * (1.0 + abs(end)) for mean, end in zip(means, ends, strict=True))

    def free_states(self, rows: int) -> Tensor:
        """[R, 2, 2], the state (last axis) at the start of each sub-step, per unit of initial offset and velocity."""
        start = torch.eye(2, dtype=torch.float64)[:, None]
        return torch.cat([start, _free_response(self, rows)[:, :-1]], dim=1).permute(1, 2, 0)

    @cached_property
    def largest_free_response(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """The largest travel and speed still to come while a command is held, per unit of initial offset and velocity.

        The offset is the distance from the held command. The layout is ((travel per offset, travel per velocity),
        (speed per offset, speed per velocity)).
        """
        free = _free_response(self, SETTLE_SUBSTEPS)
        travel = free[0] - free.new_tensor([1.0, 0.0])  # from the start; an overshoot passes the command
        largest = torch.stack([travel, free[1]]).abs()
        if self.flow is not None:
            states = self.free_states(SETTLE_SUBSTEPS)
            largest[0] += self.flow.bulge_of(states)
            largest[1] = largest[1].maximum(self.flow.speed_of(states))
        (off, moving), (speed_off, speed) = largest.amax(1).tolist()
        return (max(1.0, off), moving), (speed_off, max(1.0, speed))

    @cached_property
    def settle_ticks(self) -> int:
        """Ticks until the speed towards a held command stays below a thousandth of its maximum."""
        speed = _free_response(self, SETTLE_SUBSTEPS)[1, :, 0].abs()
        left = speed.flip(0).cummax(0).values.flip(0)  # the maximum from here on
        return 1 + int((left > 1e-3 * speed.max()).sum()) // self.substeps

    @cached_property
    def _backwards(self) -> list[list[float]]:
        return torch.linalg.inv(self._matrices[0]).tolist()

    @property
    def _matrices(self) -> tuple[Tensor, Tensor]:
        return torch.tensor(self.transition, dtype=torch.float64), torch.tensor(self.drive, dtype=torch.float64)


def position_servo(stiffness: float, damping: float, substep_s: float, substeps: int) -> LinearPlant:
    """The agent of both environments: acceleration = stiffness * (command - position) - damping * velocity.

    Integrated by semi-implicit Euler.
    """
    h, kept = substep_s, 1.0 - damping * substep_s
    pull = stiffness * h
    return LinearPlant(((1.0 - pull * h, kept * h), (-pull, kept)), (pull * h, pull), substep_s, substeps)


def identify(positions: Tensor, velocities: Tensor, commands: Tensor, substep_s: float, substeps: int) -> LinearPlant:
    """Fit the plant that explains a log best, by least squares over all axes.

    Args:
        positions, velocities: [rows, A], one row per sub-step.
        commands: [rows, A], the command in force from this row to the next.

    Raises:
        ValueError: the log is not finite, is too short or does not move, or no stable servo explains it.
    """
    now = torch.stack([positions[:-1], velocities[:-1], commands[:-1]], dim=-1).double().flatten(0, 1)
    after = torch.stack([positions[1:], velocities[1:]], dim=-1).double().flatten(0, 1)
    if not bool(now.isfinite().all() and after.isfinite().all()):
        raise ValueError("identify: the log has NaN or infinite values")
    if len(now) < 3 or int(torch.linalg.matrix_rank(now)) < 3:
        raise ValueError(f"identify: {len(now)} rows cannot tell position, velocity and command apart; move more")
    ((a, c), (b, d), (e, f)) = torch.linalg.lstsq(now, after).solution.tolist()
    return LinearPlant(((a, b), (c, d)), (e, f), substep_s, substeps)


@lru_cache(maxsize=16)
def _responses(plant: LinearPlant, ticks: int) -> tuple[Tensor, Tensor]:
    rows, held = ticks * plant.substeps, plant.substeps
    free = _free_response(plant, rows)
    start = torch.eye(2, dtype=torch.float64)[:, None]
    impulse = torch.cat([start, free[:, :-1]], dim=1) @ plant._matrices[1]  # [2, R]
    step = torch.cat([torch.zeros(2, rows, dtype=torch.float64), impulse.cumsum(1)], dim=1)
    age = torch.arange(rows)[:, None] - held * torch.arange(ticks)  # sub-steps since each command began
    return step[:, rows + age] - step[:, rows + age - held], free


@lru_cache(maxsize=16)
def _all_responses(plant: LinearPlant, ticks: int) -> Tensor:
    """Responses of positions [1 + R], then velocities, to commands [T] and the start state: [T + 2, 2 + 2R]."""
    present = torch.zeros(2, 1, ticks + 2, dtype=torch.float64)
    present[:, 0, ticks:] = torch.eye(2)
    later = torch.cat(_responses(plant, ticks), dim=-1)
    return torch.cat([present, later], dim=1).flatten(0, 1).mT


def _free_response(plant: LinearPlant, rows: int) -> Tensor:
    """Powers of the transition: responses [2, R, 2] of position and velocity to the initial offset and velocity."""
    powers = plant._matrices[0][None]
    while len(powers) < rows:
        powers = torch.cat([powers, powers @ powers[-1]])
    return powers[:rows].transpose(0, 1).contiguous()
