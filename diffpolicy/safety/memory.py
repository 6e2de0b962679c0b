"""What is known of each robot from tick to tick: its state, its last commands, what it should do by now.

Shape legend: B robots, S rows of a way to stop, A action. float64, on the CPU.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from diffpolicy.constraints.assumptions import Assumptions
from diffpolicy.constraints.fallback import Situation
from diffpolicy.constraints.plant import LinearPlant, State
from diffpolicy.constraints.trajectory import PAST_COMMANDS, Start


class RobotMemory:
    """Of a batch of robots.

    Attributes:
        start: measured state and last commands.
        stored: the way to stop that is left, [B, S, A]; NaN where there is none.
        rung: of the chunk that each robot executes, [B].
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
        self._is_known = self._is_as_expected = self._is_timely = self._is_first

    def forget(self, mask: Tensor) -> None:
        """Begin anew with the robots of `mask` [B]."""
        for part in (self.start.commands, self.stored, self._expected.position, self._expected.velocity, self._time_s):
            part[mask] = torch.nan
        self._is_first |= mask

    def observe(self, plant_state: Any, time_s: npt.ArrayLike | None, period_s: float, needs_state: bool) -> None:
        """Take in what was measured; see `SafetyLayer.observe`."""
        position, velocity = self._measured(plant_state, needs_state)
        self._is_known = position.isfinite().all(1) & velocity.isfinite().all(1)
        if bool((self._is_first & ~self._is_known).any()):
            raise ValueError(
                "plant_state: NaN or infinite in the first tick of an episode; nothing is known to hold at"
            )
        lateness = self._lateness(time_s, period_s)
        self._is_timely = ~(lateness > self._assumptions.latency_s)
        state = State(
            torch.where(self._is_known[:, None], position, self._expected.position),
            torch.where(self._is_known[:, None], velocity, self._expected.velocity),
        )
        commands = torch.where(self._is_first[:, None, None], state.position[:, None], self.start.commands)
        self.start = Start(state, commands)
        self._is_as_expected = ~(self._is_known & self._is_timely & self._deviates(state))
        self._is_first = torch.zeros_like(self._is_first)

    def situation(self, robots: Tensor, is_fresh: bool) -> Situation:
        """Of these robots [Q]; a fresh plan is never stale."""
        return Situation(
            is_known=self._is_known[robots],
            is_as_expected=self._is_as_expected[robots],
            is_timely=self._is_timely[robots] | is_fresh,
            stored=self.stored[robots],
            last=self.start.commands[robots, -1],
        )

    def advance(self, actions: Tensor) -> None:
        """The actions [B, A] have been sent: where should that lead by the next tick?"""
        if self._plant is not None:
            position, velocity = self._plant.motion(actions[:, None], self.start.state)
            tubes = self._assumptions.tubes(self._plant, actions[:, None], self.start)
            self._expected = State(position[:, -1], velocity[:, -1])
            self._slack = torch.stack([tube[:, -1] for tube in tubes])
            self._slack[:, ~self._is_known] = torch.inf
        self.start = Start(self.start.state, torch.cat([self.start.commands[:, 1:], actions[:, None]], dim=1))

    def _measured(self, plant_state: Any, needs_state: bool) -> tuple[Tensor, Tensor]:
        shape = self.start.state.position.shape
        if plant_state is None:
            if needs_state or bool(self._is_first.any()):
                why = "a constraint acts on the executed motion" if needs_state else "the episode begins"
                raise ValueError(f"plant_state: missing, but {why}; give State(position, velocity)")
            return self.start.commands[:, -1], torch.zeros(shape, dtype=torch.float64)
        numbers = [torch.as_tensor(np.asarray(part), dtype=torch.float64) for part in vars(plant_state).values()]
        for name, found in zip(("position", "velocity"), numbers, strict=True):
            if found.shape != shape:
                raise ValueError(f"plant_state: {name} has shape {list(found.shape)}, expected {list(shape)}")
        return numbers[0], numbers[1]

    def _lateness(self, time_s: npt.ArrayLike | None, period_s: float) -> Tensor:
        """Seconds since each tick was due [B]; NaN in an episode's first."""
        expected = self._time_s + period_s
        if time_s is None:
            now = torch.where(self._is_first, 0.0, expected)
        else:
            now = torch.as_tensor(np.asarray(time_s), dtype=torch.float64).expand(len(expected)).clone()
        if not bool(now.isfinite().all()) or bool((now < self._time_s).any()):
            raise ValueError(f"time_s: {now.tolist()}, expected finite and not before {self._time_s.tolist()}")
        self._time_s = now
        return now - expected

    def _deviates(self, state: State) -> Tensor:
        """[B], whether a measured state is farther from the expected one than the assumptions allow."""
        a = self._assumptions
        off = torch.linalg.vector_norm(state.position - self._expected.position, dim=-1)
        off_velocity = torch.linalg.vector_norm(state.velocity - self._expected.velocity, dim=-1)
        position_slack, velocity_slack = self._slack
        return (off > position_slack + a.position_error + a.tolerance) | (
            off_velocity > velocity_slack + a.velocity_error + a.tolerance
        )
