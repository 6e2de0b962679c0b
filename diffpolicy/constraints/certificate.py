"""The certificate: checks every constraint at every sub-step, in float64, for a plan and for stopping after each row.

A row may be sent only if the robot could then brake to rest within all constraints, and would also be clear if its last
target were held indefinitely (as when the process dies). Whatever fails later, a certified way to stop is at hand. This
is safety by induction, as in passive safety (Fraichard and Asama 2004).

Shape legend: B batch, n rows of a chunk, P = n + 1 prefixes (of 0 to n rows), S ticks of a way to stop, R rows of a
constraint, A action.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from diffpolicy.constraints.assumptions import Assumptions
from diffpolicy.constraints.calls import check_contract, error_of
from diffpolicy.constraints.constraint import Constraint, Scene
from diffpolicy.constraints.margins import of_commands, of_motion, of_the_present
from diffpolicy.constraints.planar.obstacles import LARGEST, Obstacles
from diffpolicy.constraints.plant import LinearPlant
from diffpolicy.constraints.trajectory import PAST_COMMANDS, Start, Trajectory, needed

ROUNDING = 2.0**-23  # of positions, relative: commands are float32
BRAKE_TICKS = (0, 1, 2, 4, 8)  # over which a brake may fade out the last step; 0 holds at once


@dataclass(frozen=True)
class Certificate:
    """The result of certifying one batch of plans.

    Attributes:
        length: [B], the number of leading rows that may be sent. Each of them has a certified way to stop.
        margin: [B, P], the least margin of each prefix followed by its way to stop, at least 0 if certified. Prefix 0
            is stopping now. The value is a lower bound, and exact where it is below 0.
        stops: [B, P, S, A], the commands of each way to stop.
    """

    length: Tensor
    margin: Tensor
    stops: Tensor

    @property
    def can_stop(self) -> Tensor:
        """[B], whether stopping now is certified."""
        return self.margin[:, 0] >= 0

    def robots(self, index: Tensor) -> "Certificate":
        """The certificates of the robots `index`."""
        return Certificate(self.length[index], self.margin[index], self.stops[index])

    def replaced(self, index: Tensor, other: "Certificate") -> "Certificate":
        """A copy with the certificates of the robots `index` replaced by `other`."""
        parts = [part.clone() for part in (self.length, self.margin, self.stops)]
        for part, new in zip(parts, (other.length, other.margin, other.stops), strict=True):
            part[index] = new
        return Certificate(*parts)


class Certifier:
    """Certifies commands [B, n, A] from a start, in float64 on the CPU.

    Args:
        constraints: all constraints, on commands and on the motion.
        plant: the plant; required if a constraint acts on the motion.
        period_s: seconds from command to command.
        assumptions: bounds on the errors and delays that certificates allow for.

    Raises:
        ValueError: a constraint acts on the motion, but there is no plant. Errors are assumed, but a constraint bounds
            accelerations or jerks of the motion, whose error they do not bound. The delay is longer than the ticks
            whose commands are known.
    """

    def __init__(
        self,
        constraints: Sequence[Constraint],
        plant: LinearPlant | None,
        period_s: float,
        assumptions: Assumptions,
    ) -> None:
        for constraint in constraints:
            quantity = constraint.quantity
            if quantity.acts_on == "motion":
                needed(plant)
            if quantity.acts_on == "motion" and quantity.order > 1 and not assumptions.is_exact:
                raise ValueError(
                    f"constraints: a limit of order {quantity.order} on the motion needs an exact state (no bound on "
                    "its error follows from position_error and velocity_error); let it act on commands"
                )
        if plant is not None and assumptions.delay_substeps > PAST_COMMANDS * plant.substeps:
            raise ValueError(
                f"assumptions: delay_substeps {assumptions.delay_substeps} must be at most "
                f"{PAST_COMMANDS * plant.substeps}, {PAST_COMMANDS} ticks: no earlier commands are known"
            )
        self._on_motion = [c for c in constraints if c.quantity.acts_on == "motion"]
        self._on_commands = [c for c in constraints if c.quantity.acts_on == "commands"]
        self._plant, self._period_s, self._assumptions = plant, period_s, assumptions
        # Without limits on how commands change, a fading brake has no advantage over holding at once.
        fades = any(constraint.quantity.order > 1 for constraint in self._on_commands)
        self._brakes = BRAKE_TICKS if fades else BRAKE_TICKS[:1]
        self._checked: set[int] = set()  # numbers of actions for which users' constraints were called
        self._knows_the_position = plant is not None and assumptions.position_error + assumptions.tracking_error == 0.0
        self.stop_ticks = max(self._brakes) + (1 if plant is None else plant.settle_ticks)

    def certify(self, commands: Tensor, start: Start, obstacles: Obstacles) -> Certificate:
        """Find how many rows of `commands` [B, n, A] may be sent, in physical units and exactly as given.

        A robot that is inside a limit on its position by up to `Assumptions.tolerance` may go on, as long as it gets no
        deeper: its margins then count from where it is.

        Raises:
            ContractError: a user's constraint returns something other than the protocol demands.
        """
        if commands.shape[-1] not in self._checked:
            check_contract([*self._on_motion, *self._on_commands], commands.shape[-1])
            self._checked.add(commands.shape[-1])
        commands, start = commands.double(), start.to(commands.double())
        found = self._certified(commands, start, obstacles, commands.new_zeros(len(commands)))
        if bool(found.can_stop.all()) or not self._knows_the_position:
            return found
        depth = -of_the_present(self._on_motion, start, obstacles.only_known.double(), self._assumptions)
        is_shallow = ~found.can_stop & (depth > 0) & (depth <= self._assumptions.tolerance)
        some = is_shallow.nonzero().squeeze(1)
        if len(some) == 0:
            return found
        relief = depth[some] + ROUNDING * start.state.position[some].abs().amax(1)
        return found.replaced(some, self._certified(commands[some], start.robots(some), obstacles.robots(some), relief))

    def reason(self, start: Start, obstacles: Obstacles) -> str:
        """Why one robot is not certified to stop now."""
        start, there = start.to(start.commands.double()), obstacles.only_known.double().without_empty_slots
        if not bool(_is_finite(start.commands[:, -1:], start).all()):
            return "plant_state: not received"
        if bool(obstacles.is_nan.any()):
            return f"obstacles: slots {obstacles.is_nan[0].nonzero().squeeze(1).tolist()} were not measured (NaN)"
        if not bool(obstacles.is_valid.all()):
            slots = (~obstacles.is_known[0]).nonzero().squeeze(1).tolist()
            return (
                f"obstacles: slots {slots} are not convex polygons of numbers up to {LARGEST:g}, "
                "radius and speed at least 0"
            )
        hold = Trajectory(start.commands[:, -1:].repeat(1, self.stop_ticks, 1), start, self._plant, self._period_s)
        for constraint in [*self._on_motion, *self._on_commands]:
            scene = Scene(there, hold.times_s(constraint.quantity), error=0.0)
            if error := error_of(constraint, hold.quantity(constraint.quantity), scene):
                return error
            if constraint.quantity.acts_on == "motion":
                margin = float(of_motion([constraint], hold, there, self._assumptions))
            else:
                margin = float(of_commands([constraint], hold, there))
            if not margin >= 0:
                return f"to stop now is not certified: the margin of {type(constraint).__name__} is {margin:.3g}"
        return "to stop now is not certified"

    def _certified(self, commands: Tensor, start: Start, obstacles: Obstacles, relief: Tensor) -> Certificate:
        is_valid, obstacles = obstacles.is_valid, obstacles.double().without_empty_slots
        batch, n, _ = commands.shape
        robot, sent = _prefixes(batch, n)
        cases = _Cases(sent, start.robots(robot), obstacles.robots(robot), relief[robot])
        plans = self._plans(commands, start, 0)
        # While the last target is held indefinitely, nothing is sent, so limits on commands do not apply.
        margin = self._margin(plans, cases, self._on_motion)
        best = self._margin(plans, cases, self._on_commands)
        for ticks in self._brakes[1:]:
            left = ((margin >= 0) & ~(best >= 0)).nonzero().squeeze(1)
            if len(left) == 0:
                break
            braked = self._plans(commands, start, ticks)[left]
            found = self._margin_of_brake(braked, cases.robots(left), ticks)
            better = found > best[left]
            best[left[better]], plans[left[better]] = found[better], braked[better]
        margin = torch.minimum(margin, best).unflatten(0, (batch, n + 1))
        moves = obstacles.moves().any(1)[:, None]
        if bool(moves.any()):  # otherwise the first segment covers the present, with nothing excused
            now = of_the_present(self._on_motion, start, obstacles, self._assumptions) + relief
            margin = torch.where(moves, torch.minimum(margin, now[:, None]), margin)
        margin = torch.where(_is_finite(commands, start) & is_valid[:, None], margin, -torch.inf)
        length = (margin[:, 1:] >= 0).long().cumprod(dim=1).sum(dim=1)
        stops = plans[torch.arange(len(plans))[:, None], sent[:, None] + torch.arange(self.stop_ticks)]
        return Certificate(length, margin, stops.unflatten(0, (batch, n + 1)))

    def _plans(self, commands: Tensor, start: Start, ticks: int) -> Tensor:
        """Each prefix, then its last step fading out over `ticks`, then holding: [B * P, n + S, A]."""
        n = commands.shape[1]
        path = torch.cat([start.commands[:, -2:], commands], dim=1)
        sent = torch.arange(n + 1)[:, None]
        row = torch.arange(n + self.stop_ticks)
        plans = path[:, torch.minimum(row, sent - 1) + 2]  # [B, P, n + S, A]
        if ticks:
            k = (row - sent + 1).clamp(0, ticks).to(path)
            way = k - k * (k + 1) / (2 * (ticks + 1))  # steps shrink linearly
            plans = plans + way[..., None] * path.diff(dim=1)[:, :, None]
        stops = plans.float().double()  # rounded as they would be sent
        return torch.where((row < sent)[..., None], plans, stops).flatten(0, 1)

    def _margin_of_brake(self, plans: Tensor, cases: "_Cases", ticks: int) -> Tensor:
        """The least margin [Q], also if the process dies while the robot brakes."""
        margin = self._margin(plans, cases, self._on_commands)
        good = (margin >= 0).nonzero().squeeze(1)  # the others fail already
        last = cases.sent[good, None] + torch.arange(ticks)  # [Q, ticks], the last row before the process dies
        rows = torch.minimum(torch.arange(plans.shape[1]), last[..., None])
        died = plans[good[:, None, None], rows].flatten(0, 1)
        found = self._margin(died, cases.robots(good.repeat_interleave(ticks)), self._on_motion)
        margin[good] = torch.minimum(margin[good], found.unflatten(0, (len(good), ticks)).amin(1))
        return margin

    def _margin(self, plans: Tensor, cases: "_Cases", constraints: Sequence[Constraint]) -> Tensor:
        """The least margin [Q] of plans [Q, T, A]."""
        trajectory = Trajectory(plans, cases.start, self._plant, self._period_s)
        if constraints is self._on_commands:
            return of_commands(constraints, trajectory, cases.obstacles)
        return of_motion(constraints, trajectory, cases.obstacles, self._assumptions, cases.relief)


@dataclass(frozen=True)
class _Cases:
    """For each of Q plans: how many rows are sent before stopping, where the robot starts, what is around it, and how
    deep it is inside a limit on its position at the present."""

    sent: Tensor
    start: Start
    obstacles: Obstacles
    relief: Tensor

    def robots(self, index: Tensor) -> "_Cases":
        """The cases of the plans `index`."""
        return _Cases(self.sent[index], self.start.robots(index), self.obstacles.robots(index), self.relief[index])


@lru_cache(maxsize=16)
def _prefixes(batch: int, n: int) -> tuple[Tensor, Tensor]:
    """The robot and the number of rows of every prefix in a batch of chunks, [B * P] each."""
    return torch.arange(batch).repeat_interleave(n + 1), torch.arange(n + 1).repeat(batch)


def _is_finite(commands: Tensor, start: Start) -> Tensor:
    """[B, P], whether a prefix and what came before it are finite. Without obstacles, constraints may not notice."""
    path = torch.cat([start.commands, commands], dim=1).sum(-1).cumsum(dim=1)[:, PAST_COMMANDS - 1 :]
    state = (start.state.position + start.state.velocity).sum(-1)
    return (path + state[:, None]).isfinite()
