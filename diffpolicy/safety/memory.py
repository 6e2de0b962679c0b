"""What is remembered about each robot from tick to tick: its state, its last commands, and where it should be by now.

Shape legend: B robots, S rows of a way to stop, A action. float64, on the CPU.
"""

from collections.abc import Collection

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from diffpolicy.constraints.assumptions import Assumptions
from diffpolicy.constraints.fallback import HOLD, STORED, Situation
from diffpolicy.constraints.planar.obstacles import LARGEST, Obstacles, no_obstacles
from diffpolicy.constraints.plant import LinearPlant, State
from diffpolicy.constraints.trajectory import PAST_COMMANDS, Start
from diffpolicy.constraints.vectors import length
from diffpolicy.safety.surroundings import Surroundings

TIME_RESOLUTION_S = 1e-6  # of the clock in `Surroundings.time_s`
JITTER = 0.005  # of a period; a plan goes on after a call that is no further off its tick, but a way to stop does not


class RobotMemory:
    """The memory of a batch of robots.

    Attributes:
        start: the measured state and the last commands.
        stored: [B, S, A], the way to stop that is left; NaN if there is none.
        rung: [B], the rung of the chunk that each robot executes.
        unusable: {robot: why} for the robots that were told something at this tick that cannot be used.
    """

    def __init__(
        self, batch: int, action_dim: int, stop_ticks: int, plant: LinearPlant | None, assumptions: Assumptions
    ) -> None:
        self._plant, self._assumptions = plant, assumptions
        unknown = torch.full((batch, action_dim), torch.nan, dtype=torch.float64)
        self.start = Start(State(unknown, unknown), unknown[:, None].repeat(1, PAST_COMMANDS, 1))
        self.stored = unknown[:, None].repeat(1, stop_ticks, 1)
        self.rung = torch.zeros(batch, dtype=torch.long)
        self.unusable: dict[int, str] = {}
        self._is_first = torch.ones(batch, dtype=torch.bool)
        self._expected = State(unknown, unknown)
        self._slack = torch.zeros(2, batch, dtype=torch.float64)  # of position and velocity
        self._time_s = torch.full((batch,), torch.nan, dtype=torch.float64)
        self._no_obstacles = self._obstacles = no_obstacles(batch)
        self._is_known = self._is_as_expected = self._is_timely = self._is_around_known = self._is_first

    def forget(self, mask: Tensor) -> None:
        """Start over with the robots of `mask` [B]."""
        for part in (self.start.commands, self.stored, self._expected.position, self._expected.velocity, self._time_s):
            part[mask] = torch.nan
        self._slack[:, mask] = 0.0
        self._is_first |= mask

    def observe(self, surroundings: Surroundings, period_s: float, needs_state: bool) -> None:
        """Take in what was measured; see `SafetyLayer.observe`. Obstacles must have the same slots at every tick."""
        plant_state, obstacles = surroundings.plant_state, surroundings.obstacles or self._no_obstacles
        position, velocity = self._measured(plant_state, needs_state)
        is_known = (torch.cat([position, velocity], dim=1).abs() <= LARGEST).all(1)
        now, is_possible = self._time(surroundings.time_s, period_s)
        lost, self.unusable = self._is_first & ~is_known, {}
        for robot in lost.nonzero().squeeze(1).tolist():
            self.unusable[robot] = "plant_state: not received since the episode began, so there is no position to hold"
        for robot in (~is_possible).nonzero().squeeze(1).tolist():
            self.unusable[robot] = "time_s: not finite, or before that of the last tick"
        lateness, elapsed = now - self._time_s - period_s, now - self._time_s  # NaN in the first tick of an episode
        off = torch.where(is_possible, lateness.abs(), torch.inf)
        self._is_timely = ~(off > self._assumptions.latency_s + JITTER * period_s)
        self._is_known, self._time_s = is_known, torch.where(lost, torch.nan, now)
        expected = self._expected_at(torch.where(self._is_timely, lateness.nan_to_num(0.0), 0.0))
        state = State(
            torch.where(is_known[:, None], position, expected.position),
            torch.where(is_known[:, None], velocity, expected.velocity),
        )
        commands = self._held(lateness / period_s)
        self.start = Start(state, torch.where(self._is_first[:, None, None], state.position[:, None], commands))
        if plant_state is None:
            self._is_as_expected = torch.ones_like(is_known)
        else:
            late_s = torch.where(self._is_timely, off, 0.0).nan_to_num(0.0)
            self._is_as_expected = ~(is_known & self._is_timely & self._deviates(state, expected, late_s))
        # A way to stop is certified only for its own ticks, and only if obstacles keep to their speed. At other times
        # its robot is left to go to the last target, which is certified for ever.
        holds = (off > self._assumptions.latency_s + TIME_RESOLUTION_S) & self.stored[:, 0].isfinite().all(-1)
        self.stored[holds] = commands[holds, -1:]
        self.stored[~(self._is_timely & self._keep_to_their_speed(obstacles.double(), elapsed))] = torch.nan
        self._is_first, self._is_around_known = lost, obstacles.is_valid

    @property
    def may_follow_stored(self) -> Tensor:
        """[B], whether a way to stop is left that is still certified."""
        return self._is_as_expected & self.stored[:, 0].isfinite().all(-1)

    def situation(self, robots: Tensor, is_fresh: bool, unusable: Collection[int] = ()) -> Situation:
        """The situation of these robots [Q]. A fresh plan is never stale; that of an unusable robot counts as such."""
        is_timely = self._is_timely[robots] | is_fresh
        if unusable:
            is_timely &= torch.tensor([robot not in unusable for robot in robots.tolist()])
        return Situation(
            is_known=self._is_known[robots],
            is_as_expected=self._is_as_expected[robots],
            is_timely=is_timely,
            stored=self.stored[robots],
            last=self.start.commands[robots, -1],
            may_stay=(self._is_known & self._is_around_known)[robots],
        )

    def hold(self, may: Tensor) -> None:
        """All robots hold their last commands, for ever if they may [B]: then that is a way to stop."""
        self.stored[:] = torch.where(may[:, None, None], self.start.commands[:, -1:], torch.nan)
        self.rung[:] = torch.where(may, STORED, HOLD)

    def advance(self, actions: Tensor) -> None:
        """Record the actions [B, A] that were sent, and predict where they lead by the next tick."""
        if self._plant is not None:
            position, velocity = self._plant.motion(actions[:, None], self.start.state)
            tubes = self._assumptions.tubes(self._plant, actions[:, None], self.start)
            self._expected = State(position[:, -1], velocity[:, -1])
            _, free = self._plant.responses(1)
            carried = torch.where(self._is_known, 0.0, self._slack)  # if the state itself was a prediction
            self._slack = torch.stack([tube[:, -1] for tube in tubes]) + free[:, -1].abs() @ carried
        self.start = Start(self.start.state, torch.cat([self.start.commands[:, 1:], actions[:, None]], dim=1))

    def _measured(self, plant_state: State | None, needs_state: bool) -> tuple[Tensor, Tensor]:
        shape = self.start.state.position.shape
        if plant_state is None:
            if needs_state or bool(self._is_first.any()):
                why = "a constraint acts on the executed motion" if needs_state else "the episode begins"
                raise ValueError(f"plant_state: missing, but {why}; give State(position, velocity)")
            return self.start.commands[:, -1], torch.zeros(shape, dtype=torch.float64)
        if not isinstance(plant_state, State):
            raise ValueError(f"plant_state: is a {type(plant_state).__name__}, expected State(position, velocity)")
        parts = (plant_state.position, plant_state.velocity)
        numbers = [torch.as_tensor(np.asarray(part), dtype=torch.float64) for part in parts]
        for name, found in zip(("position", "velocity"), numbers, strict=True):
            if found.shape != shape:
                raise ValueError(f"plant_state: {name} has shape {list(found.shape)}, expected {list(shape)}")
        return numbers[0], numbers[1]

    def _time(self, time_s: npt.ArrayLike | None, period_s: float) -> tuple[Tensor, Tensor]:
        """[B] each: the time of this tick, and whether it may be. If it is one for all robots, it must."""
        next_s = torch.where(self._is_first, 0.0, self._time_s + period_s)
        if time_s is None:
            return next_s, torch.ones_like(self._is_first)
        given = torch.as_tensor(np.asarray(time_s), dtype=torch.float64)
        now = given.expand(len(self._time_s))
        is_possible = now.isfinite() & ~(now < self._time_s)
        if given.ndim == 0 and not bool(is_possible.all()):
            raise ValueError(f"time_s: {float(given)}, expected finite and not before {self._time_s.tolist()}")
        return torch.where(is_possible, now, next_s), is_possible

    def _expected_at(self, lateness_s: Tensor) -> State:
        """The expected state so many seconds [B] after the tick, or before it, with the last command held."""
        flow = None if self._plant is None else self._plant.flow
        if self._plant is None or flow is None or bool((lateness_s.abs() <= TIME_RESOLUTION_S).all()):
            return self._expected
        command = self.start.commands[:, -1]
        off = torch.stack([self._expected.position - command, self._expected.velocity], dim=1)
        later = flow.later(off, lateness_s / self._plant.substep_s)
        return State(later[:, 0] + command, later[:, 1])

    def _held(self, ticks_late: Tensor) -> Tensor:
        """The last commands [B, 3, A], tick by tick. The last one was also in force for every whole tick missed."""
        missed = (ticks_late + 1e-6).nan_to_num(0.0).clamp(0, PAST_COMMANDS).long()
        if not bool(missed.any()):
            return self.start.commands
        index = (torch.arange(PAST_COMMANDS) + missed[:, None]).clamp(max=PAST_COMMANDS - 1)
        return self.start.commands[torch.arange(len(index))[:, None], index]

    def _keep_to_their_speed(self, obstacles: Obstacles, elapsed_s: Tensor) -> Tensor:
        """[B], whether the obstacles lie where the last ones may have moved.

        A slot that was not measured keeps what was in it, which meanwhile moves on.
        """
        if obstacles is self._obstacles:  # nothing has moved
            return torch.ones_like(self._is_first)
        before = self._obstacles.padded(max(obstacles.slots, self._obstacles.slots))
        expected = before.moved_on(elapsed_s).replaced(self._is_first[:, None], obstacles)
        self._obstacles = expected.replaced(obstacles.is_known, obstacles)
        return obstacles.is_within(expected, self._assumptions.tolerance)

    def _deviates(self, state: State, expected: State, late_s: Tensor) -> Tensor:
        """[B], whether a measured state is further from the expected one than the assumptions allow.

        It may have been made at its own time or on the tick, if both are within the latency, and meanwhile errors of
        the velocity add to those of the position.
        """
        a, on_tick = self._assumptions, self._expected
        off = length(state.position - expected.position)
        off_velocity = length(state.velocity - expected.velocity)
        position_slack, velocity_slack = self._slack
        position_slack = position_slack + late_s * velocity_slack + length(expected.position - on_tick.position)
        velocity_slack = velocity_slack + length(expected.velocity - on_tick.velocity)
        return (off > position_slack + a.position_error + a.tolerance) | (
            off_velocity > velocity_slack + a.velocity_error + a.tolerance
        )
