"""What decides: every constraint on every sub-step, in float64, for a plan and for stopping after each of its rows.

A row may be sent only if the robot could come to rest after it, by a brake that meets all constraints, and would also
be clear if its last target were held for ever (a process that died). So whatever fails later, a certified way to
stop is at hand: safety by induction, as in passive safety (Fraichard and Asama 2004).

Shape legend: B batch, n rows of a chunk, P = n + 1 prefixes (of 0 to n rows), S ticks of a way to stop, R rows of a
constraint, A action.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffpolicy.constraints.assumptions import Assumptions
from diffpolicy.constraints.constraint import Constraint, Scene
from diffpolicy.constraints.obstacles import Obstacles
from diffpolicy.constraints.plant import LinearPlant
from diffpolicy.constraints.trajectory import PAST_COMMANDS, Start, needed, row_times_s, rows_of

BRAKE_TICKS = (0, 1, 2, 4, 8)  # over which a brake may let the last step fade; 0 holds at once


@dataclass(frozen=True)
class Certificate:
    """What was found for one batch of plans.

    Attributes:
        length: [B], how many rows, from the first on, may be sent: each has a certified way to stop.
        margin: [B, P], the least margin of each prefix with its way to stop, at least 0 where certified; prefix 0 is
            stopping now.
        stops: [B, P, S, A], the commands of that way to stop.
    """

    length: Tensor
    margin: Tensor
    stops: Tensor

    @property
    def can_stop(self) -> Tensor:
        """[B], whether stopping now is certified."""
        return self.margin[:, 0] >= 0

    def rows(self, index: Tensor) -> "Certificate":
        """Of the robots `index`."""
        return Certificate(self.length[index], self.margin[index], self.stops[index])

    def replaced(self, index: Tensor, other: "Certificate") -> "Certificate":
        """With those of the robots `index` replaced."""
        parts = [part.clone() for part in (self.length, self.margin, self.stops)]
        for part, new in zip(parts, (other.length, other.margin, other.stops), strict=True):
            part[index] = new
        return Certificate(*parts)


class Certifier:
    """Certifies commands [B, n, A] from a start, in float64 on the CPU.

    Args:
        constraints: all of them.
        plant: where one acts on the motion, or none.
        period_s: seconds from command to command.
        assumptions: what is taken for granted.

    Raises:
        ValueError: errors are assumed, but a constraint bounds accelerations or jerks of the motion, whose error they
            do not bound; a constraint on the motion without a plant; a delay of more ticks than commands are known.
    """

    def __init__(
        self,
        constraints: Sequence[Constraint],
        plant: LinearPlant | None,
        period_s: float,
        assumptions: Assumptions,
    ) -> None:
        for constraint in constraints:
            rows = constraint.rows
            if rows.acts_on == "motion":
                needed(plant)
            if rows.acts_on == "motion" and rows.order > 1 and not assumptions.is_exact:
                raise ValueError(
                    f"constraints: a limit of order {rows.order} on the motion needs an exact state (no bound on its "
                    "error follows from position_error and velocity_error); let it act on commands"
                )
        if plant is not None and assumptions.delay_substeps > PAST_COMMANDS * plant.substeps:
            raise ValueError(
                f"assumptions: delay_substeps {assumptions.delay_substeps} must be at most "
                f"{PAST_COMMANDS * plant.substeps}, {PAST_COMMANDS} ticks: no earlier commands are known"
            )
        self._on_motion = [c for c in constraints if c.rows.acts_on == "motion"]
        self._on_commands = [c for c in constraints if c.rows.acts_on == "commands"]
        self._plant, self._period_s, self._assumptions = plant, period_s, assumptions
        # Without limits on how commands change, a brake that fades has nothing over one that holds.
        fades = any(constraint.rows.order > 1 for constraint in self._on_commands)
        self._brakes = BRAKE_TICKS if fades else BRAKE_TICKS[:1]
        self.stop_ticks = max(self._brakes) + (1 if plant is None else plant.settle_ticks)

    def certify(self, commands: Tensor, start: Start, obstacles: Obstacles) -> Certificate:
        """What may be sent of `commands` [B, n, A], physical units, taken as they are."""
        commands, start = commands.double(), start.to(commands.double())
        obstacles = obstacles.double().without_empty_slots()
        held = self._stops(commands, start, 0)
        margin = self._margin(commands, held, start, obstacles, self._on_motion)  # held for ever: nothing more is sent
        best = torch.full_like(margin, -torch.inf)
        chosen = held
        for ticks in self._brakes:
            stops = held if ticks == 0 else self._stops(commands, start, ticks)
            constraints = self._on_commands if ticks == 0 else [*self._on_commands, *self._on_motion]
            found = self._margin(commands, stops, start, obstacles, constraints)
            for row in range(ticks - 1):  # the process may die while it brakes, too
                left = torch.cat([stops[:, :, : row + 1], stops[:, :, row, None].expand_as(stops)], dim=2)
                died = self._margin(commands, left, start, obstacles, self._on_motion)
                found = torch.minimum(found, died)
            better = ~(best >= 0) & (found > best)
            best = torch.where(better, found, best)
            chosen = torch.where(better[..., None, None], stops, chosen)
        margin = torch.minimum(margin, best)
        margin = torch.where(_is_finite(commands, start) & obstacles.is_valid()[:, None], margin, -torch.inf)
        length = (margin[:, 1:] >= 0).long().cumprod(dim=1).sum(dim=1)
        return Certificate(length, margin, chosen[:, :, : self.stop_ticks])

    def _stops(self, commands: Tensor, start: Start, ticks: int) -> Tensor:
        """After each prefix, the last step fading over `ticks`, then holding: [B, P, n + S, A]."""
        path = torch.cat([start.commands[:, -2:], commands], dim=1)
        last, step = path[:, 1:], path.diff(dim=1)
        k = torch.arange(1, commands.shape[1] + self.stop_ticks + 1, dtype=commands.dtype).clamp(max=ticks)
        way = k - k * (k + 1) / (2 * (ticks + 1))  # steps shrink linearly
        stops = last[:, :, None] + way[:, None] * step[:, :, None]
        return stops.float().double()  # as they would be sent

    def _margin(
        self, commands: Tensor, stops: Tensor, start: Start, obstacles: Obstacles, constraints: Sequence[Constraint]
    ) -> Tensor:
        """The least margin [B, P] over all rows of each prefix and its way to stop."""
        batch, n, _ = commands.shape
        ticks = n + self.stop_ticks
        plans = torch.stack(
            [torch.cat([commands[:, :i], stops[:, i, : ticks - i]], dim=1) for i in range(n + 1)], dim=1
        ).flatten(0, 1)
        robots = torch.arange(batch).repeat_interleave(n + 1)
        start, obstacles = start.rows(robots), obstacles.rows(robots)
        parts = [plans.new_full((len(plans),), torch.inf)]
        motion = self._motion(plans, start) if any(c.rows.acts_on == "motion" for c in constraints) else None
        for constraint in constraints:
            parts.append(self._margin_of(constraint, plans, start, obstacles, motion))
        return torch.stack(parts).amin(0).unflatten(0, (batch, n + 1))

    def _margin_of(
        self, constraint: Constraint, plans: Tensor, start: Start, obstacles: Obstacles, motion: "_Motion | None"
    ) -> Tensor:
        rows, ticks = constraint.rows, plans.shape[1]
        y = rows_of(rows, self._plant, self._period_s, plans, start)
        time_s = row_times_s(rows, self._plant, self._period_s, ticks)
        if rows.acts_on == "commands" or motion is None:
            return constraint.margin(y, Scene(obstacles, time_s)).amin(1)
        margin = constraint.margin(y, Scene(obstacles, time_s, motion.at_rest))
        if rows.order < 2:
            margin = margin - (motion.velocity_tube if rows.order else motion.position_tube)
        ends_well = motion.at_rest[:, -1] | ~(obstacles.is_used & (obstacles.speed > 0)).any(1)
        return torch.where(ends_well, margin.amin(1), -torch.inf)

    def _motion(self, plans: Tensor, start: Start) -> "_Motion":
        plant = needed(self._plant)
        position, velocity = plant.motion(plans, start.state)
        tube, velocity_tube = self._assumptions.tubes(plant, plans, start)
        speed = _speed(position, velocity, start, plant.substep_s)
        # Whatever is left of the way to the held target at the end may still come.
        offset = torch.linalg.vector_norm(position[:, -1] - plans[:, -1], dim=-1)
        to_come = plans.new_tensor(plant.largest_free_response) @ torch.stack([offset, speed[:, -1]])  # [2, B]
        tube = torch.cat([tube[:, :-1], (tube[:, -1] + to_come[0])[:, None]], dim=1)
        # Of a segment both ends count; the first begins with the errors of the present.
        present = tube.new_full((len(tube), 1), self._assumptions.position_error + self._assumptions.tracking_error)
        tube = torch.maximum(tube, torch.cat([present, tube[:, :-1]], dim=1))
        speed = torch.cat([speed[:, :-1], to_come[1, :, None]], dim=1)
        return _Motion(speed + velocity_tube <= self._assumptions.rest_speed, tube, velocity_tube)


def _speed(position: Tensor, velocity: Tensor, start: Start, substep_s: float) -> Tensor:
    """Of each sub-step [B, R]: the largest of its ends' and its mean."""
    path = torch.cat([start.state.position[:, None], position], dim=1)
    ends = torch.cat([start.state.velocity[:, None], velocity], dim=1)
    at_ends = torch.linalg.vector_norm(ends, dim=-1)
    mean = torch.linalg.vector_norm(path.diff(dim=1), dim=-1) / substep_s
    return torch.maximum(mean, torch.maximum(at_ends[:, 1:], at_ends[:, :-1]))


def _is_finite(commands: Tensor, start: Start) -> Tensor:
    """[B, P], whether a prefix and what came before it are numbers; without obstacles, no constraint might ask."""
    path = torch.cat([start.commands, commands], dim=1).isfinite().all(-1)
    state = (start.state.position + start.state.velocity).isfinite().all(-1)
    return path.long().cumprod(dim=1).bool()[:, PAST_COMMANDS - 1 :] & state[:, None]


@dataclass(frozen=True)
class _Motion:
    """How sure the motion is at the end of every sub-step, [B, R] each."""

    at_rest: Tensor
    position_tube: Tensor
    velocity_tube: Tensor
