"""The safety monitor: checks the executed motion against the constraints, sub-step by sub-step, certified or not.

Shape legend: B envs, R = substeps rows of one tick, A action.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from diffpolicy.constraints.constraint import Constraint, Scene
from diffpolicy.constraints.margins import substep_speed
from diffpolicy.constraints.planar.obstacles import Obstacles, no_obstacles
from diffpolicy.constraints.plant import State
from diffpolicy.constraints.trajectory import PAST_COMMANDS, Start, Trajectory, needed
from diffpolicy.constraints.vectors import length
from diffpolicy.evaluation.readings import Readings
from diffpolicy.safety.report import PlanReport
from diffpolicy.safety.settings import Safety
from diffpolicy.safety.surroundings import Surroundings

MODEL_ERROR = 1e-3  # units; a tick that ends further than this from the plant's prediction counts as unchecked
FALLBACK = ("prefix", "stored", "hold")


@dataclass
class EpisodeRecord:
    """The record of one episode, in physical units.

    Attributes:
        ticks, substeps: the numbers executed.
        unchecked: ticks whose motion the plant does not explain. They do not count in the fields below.
        violations: sub-steps too close to an obstacle, except those in violations_at_rest.
        violations_at_rest: sub-steps in which a moving obstacle came too close to a robot that stood still.
        over_limits: sub-steps that break any other constraint.
        deepest: the largest shortfall of the distance to an obstacle.
        certified, fallback, alarm: numbers of ticks.
        path: the executed positions at the end of each tick.
    """

    ticks: int = 0
    substeps: int = 0
    unchecked: int = 0
    violations: int = 0
    violations_at_rest: int = 0
    over_limits: int = 0
    deepest: float = 0.0
    certified: int = 0
    fallback: int = 0
    alarm: int = 0
    path: list[list[float]] = field(default_factory=list)


class Monitor:
    """An `OnTick` for `rollout` that keeps a record of each episode.

    An env that executes other actions than those sent must report them as info["executed_action"].

    Args:
        safety: the constraints to check, whether or not a layer enforces them.
    """

    def __init__(self, safety: Safety) -> None:
        self._safety = safety
        self._plant = needed(safety.plant)
        self._commands: Tensor | None = None
        self._last_episode: npt.NDArray[np.intp] | None = None
        self.records: dict[int, EpisodeRecord] = {}

    def __call__(
        self,
        episode: npt.NDArray[np.intp],
        before: Surroundings,
        info: Mapping[str, Any],
        action: npt.NDArray[np.float32],
        report: PlanReport | None,
    ) -> None:
        state = before.plant_state
        if state is None:
            raise ValueError("monitor: the env's info has no agent_position and agent_velocity")
        start = Start(state, self._history(episode, state))
        sent = torch.from_numpy(np.asarray(info.get("executed_action", action))).double()
        after = torch.from_numpy(np.asarray(info["agent_position"]))
        found = self._executed(start, sent, self._obstacles(before, info, len(sent)))
        explained = length(found.position - after) <= MODEL_ERROR
        excused, too_close, over = (
            (~(margin >= 0) & explained[:, None]).sum(1).tolist() for margin in (found.near, found.moving, found.others)
        )
        deepest = (-found.moving.amin(1)).clamp(min=0.0).tolist()
        for env in np.flatnonzero(episode >= 0).tolist():
            record = self.records.setdefault(int(episode[env]), EpisodeRecord())
            record.ticks += 1
            record.substeps += self._plant.substeps
            record.unchecked += int(not explained[env])
            record.violations += too_close[env]
            record.violations_at_rest += excused[env] - too_close[env]
            record.over_limits += over[env]
            record.deepest = max(record.deepest, deepest[env] if explained[env] else 0.0)
            record.path.append(after[env].tolist())
            if report is not None:
                record.certified += int(report.certified[env])
                record.fallback += int(report.rung[env] in FALLBACK)
                record.alarm += int(report.alarm[env])
        self._commands = torch.cat([start.commands[:, 1:], sent[:, None]], dim=1)

    def _history(self, episode: npt.NDArray[np.intp], state: State) -> Tensor:
        """The last commands [B, 3, A]. Where an episode begins, they are its start position."""
        begins = state.position[:, None].expand(-1, PAST_COMMANDS, -1)
        if self._commands is None or self._last_episode is None:
            commands = begins.clone()
        else:
            is_new = torch.from_numpy(episode != self._last_episode)
            commands = torch.where(is_new[:, None, None], begins, self._commands)
        self._last_episode = episode.copy()
        return commands

    def _obstacles(self, before: Surroundings, info: Mapping[str, Any], batch: int) -> list[Obstacles]:
        """The obstacles at the end of every sub-step, interpolated between before and after the tick."""
        now = before.obstacles or no_obstacles(batch)
        then = Readings()
        then.update(info, np.ones(batch, dtype=bool))
        later = then.obstacles or now
        made: list[Obstacles] = []
        for row in range(1, self._plant.substeps + 1):
            vertices = torch.lerp(now.vertices, later.vertices, row / self._plant.substeps)
            made.append(self._safety.with_zones(Obstacles(vertices, now.radius, now.speed, now.is_used)))
        return made

    def _executed(self, start: Start, sent: Tensor, obstacles: list[Obstacles]) -> "_Executed":
        plant = self._plant
        trajectory = Trajectory(sent[:, None], start, plant, plant.period_s)
        at_rest = substep_speed(*trajectory.motion, plant.substep_s) <= self._safety.assumptions.rest_speed
        position = trajectory.motion[0][:, 1:]
        nothing = torch.full(position.shape[:2], torch.inf, dtype=torch.float64)
        near, moving, others = [nothing], [nothing], [nothing]
        for constraint in self._safety.constraints:
            quantity = constraint.quantity
            y = trajectory.quantity(quantity)
            now = torch.zeros_like(trajectory.times_s(quantity))  # each sub-step has its own obstacles
            if not quantity.segments:
                margin = constraint.margin(y, Scene(obstacles[-1], now))
                others.append(margin.expand(-1, plant.substeps))
                continue
            for rest, margins in ((None, near), (at_rest, moving)):
                margins.append(self._along(constraint, y, obstacles, now, rest))
        least = [torch.stack(margins).amin(0) for margins in (near, moving, others)]
        return _Executed(least[0], least[1], least[2], position[:, -1])

    def _along(
        self, constraint: Constraint, y: Tensor, obstacles: list[Obstacles], now: Tensor, at_rest: Tensor | None
    ) -> Tensor:
        """[B, R], the margin of every sub-step to the obstacles of that sub-step."""
        if constraint.quantity.acts_on == "commands":
            return constraint.margin(y, Scene(obstacles[-1], now, error=0.0)).expand(-1, self._plant.substeps)
        parts: list[Tensor] = []
        for i, there in enumerate(obstacles):
            rest = None if at_rest is None else at_rest[:, i : i + 1]
            parts.append(constraint.margin(y[:, i : i + 1], Scene(there, now[:1], rest, error=0.0)))
        return torch.cat(parts, dim=1)


@dataclass(frozen=True)
class _Executed:
    """The least margins of every sub-step [B, R], and the position at the end of the tick [B, A].

    Attributes:
        near: the margin to all obstacles.
        moving: the same, but moving obstacles do not count while the robot stands still.
        others: the margin of all other constraints.
        position: where the plant says that the tick ended.
    """

    near: Tensor
    moving: Tensor
    others: Tensor
    position: Tensor
