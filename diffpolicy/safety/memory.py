"""What is remembered about each robot from tick to tick: its state, its last commands, and where it should be by now.

Shape legend: B robots, S rows of a way to stop, A action. float64, on the CPU.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from diffpolicy.constraints.assumptions import Assumptions
from diffpolicy.constraints.fallback import Situation
from diffpolicy.constraints.planar.obstacles import Obstacles, no_obstacles
from diffpolicy.constraints.plant import LinearPlant, State
from diffpolicy.constraints.trajectory import PAST_COMMANDS, Start
from diffpolicy.constraints.vectors import length
from diffpolicy.safety.surroundings import Surroundings

TIME_RESOLUTION_S = 1e-6  # of the clock in `Surroundings.time_s`


class RobotMemory:
    """The memory of a batch of robots.

    Attributes:
        start: the measured state and the last commands.
        stored: [B, S, A], the way to stop that is left; NaN if there is none.
        rung: [B], the rung of the chunk that each robot executes.
    """

    def __init__(
        self, batch: int, action_dim: int, stop_ticks: int, plant: LinearPlant | None, assumptions: Assumptions
    ) -> None:
        self._plant, self._assumptions = plant, assumptions
        unknown = torch.full((batch, action_dim), torch.nan, dtype=torch.float64)
        self.start = Start(State(unknown, unknown), unknown[:, None].repeat(1, PAST_COMMANDS, 1))
        self.stored = unknown[:, None].repeat(1, stop_ticks, 1)
        self.rung = torch.zeros(batch, dtype=torch.long)
        self._is_first = torch.ones(batch, dtype=torch.bool)
        self._expected = State(unknown, unknown)
        self._slack = torch.zeros(2, batch, dtype=torch.float64)  # of position and velocity
        self._time_s = torch.full((batch,), torch.nan, dtype=torch.float64)
        self._no_obstacles = self._obstacles = no_obstacles(batch)
        self._is_known = self._is_as_expected = self._is_timely = self._is_first

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
        is_known = torch.cat([position, velocity], dim=1).isfinite().all(1)
        if bool((self._is_first & ~is_known).any()):
            raise ValueError(
                "plant_state: NaN or infinite in the first tick of an episode, so there is no position to hold"
            )
        now = self._time(surroundings.time_s, period_s)
        lateness, elapsed = now - self._time_s - period_s, now - self._time_s  # NaN in the first tick of an episode
        self._is_timely = ~(lateness.abs() > self._assumptions.latency_s + TIME_RESOLUTION_S)
        self._is_known, self._time_s = is_known, now
        state = State(
            torch.where(is_known[:, None], position, self._expected.position),
            torch.where(is_known[:, None], velocity, self._expected.velocity),
        )
        commands = self._held(lateness / period_s)
        self.start = Start(state, torch.where(self._is_first[:, None, None], state.position[:, None], commands))
        if plant_state is None:
            self._is_as_expected = torch.ones_like(is_known)
        else:
            self._is_as_expected = ~(is_known & self._is_timely & self._deviates(state))
        # A way to stop is certified only for its own ticks, and only if obstacles keep to their speed.
        self.stored[~(self._is_timely & self._keep_to_their_speed(obstacles.double(), elapsed))] = torch.nan
        self._is_first = torch.zeros_like(self._is_first)

    def situation(self, robots: Tensor, is_fresh: bool) -> Situation:
        """The situation of these robots [Q]. A fresh plan is never stale."""
        return Situation(
            is_known=self._is_known[robots],
            is_as_expected=self._is_as_expected[robots],
            is_timely=self._is_timely[robots] | is_fresh,
            stored=self.stored[robots],
            last=self.start.commands[robots, -1],
        )

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

    def _time(self, time_s: npt.ArrayLike | None, period_s: float) -> Tensor:
        """[B], the time of this tick."""
        if time_s is None:
            now = torch.where(self._is_first, 0.0, self._time_s + period_s)
        else:
            now = torch.as_tensor(np.asarray(time_s), dtype=torch.float64).expand(len(self._time_s)).clone()
        if not bool((now.isfinite() & ~(now < self._time_s)).all()):
            raise ValueError(f"time_s: {now.tolist()}, expected finite and not before {self._time_s.tolist()}")
        return now

    def _held(self, ticks_late: Tensor) -> Tensor:
        """The last commands [B, 3, A], tick by tick. The last one was also in force for every whole tick missed."""
        missed = (ticks_late + 1e-6).nan_to_num(0.0).clamp(0, PAST_COMMANDS).long()
        if not bool(missed.any()):
            return self.start.commands
        index = (torch.arange(PAST_COMMANDS) + missed[:, None]).clamp(max=PAST_COMMANDS - 1)
        return self.start.commands[torch.arange(len(index))[:, None], index]

    def _keep_to_their_speed(self, obstacles: Obstacles, elapsed_s: Tensor) -> Tensor:
        """[B], whether the obstacles lie where the last ones may have moved, or were not measured."""
        is_measured = obstacles.is_valid
        if obstacles is self._obstacles:  # nothing has moved
            return torch.ones_like(is_measured)
        expected = self._obstacles.moved_on(elapsed_s).replaced(self._is_first, obstacles)
        self._obstacles = expected.replaced(is_measured, obstacles)
        return obstacles.is_within(expected, self._assumptions.tolerance) | ~is_measured

    def _deviates(self, state: State) -> Tensor:
        """[B], whether a measured state is further from the expected one than the assumptions allow."""
        a = self._assumptions
        off = length(state.position - self._expected.position)
        off_velocity = length(state.velocity - self._expected.velocity)
        position_slack, velocity_slack = self._slack
        return (off > position_slack + a.position_error + a.tolerance) | (
            off_velocity > velocity_slack + a.velocity_error + a.tolerance
        )
