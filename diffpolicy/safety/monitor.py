"""What was really executed, sub-step by sub-step, against what was demanded; certified or not.

Shape legend: B envs, R = substeps rows of one tick, A action.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from diffpolicy.constraints.constraint import Scene
from diffpolicy.constraints.obstacles import Obstacles, no_obstacles, together
from diffpolicy.constraints.plant import State
from diffpolicy.constraints.trajectory import PAST_COMMANDS, Start, needed, row_times_s, rows_of
from diffpolicy.safety.layer import PlanReport
from diffpolicy.safety.readings import Readings
from diffpolicy.safety.settings import Safety

MODEL_ERROR = 1e-3  # units: a tick that ends farther than this from the plant's prediction is not counted as checked
FALLBACK = ("prefix", "stored", "hold")


@dataclass
class EpisodeRecord:
    """Of one episode, in physical units.

    Attributes:
        ticks, substeps: executed.
        unchecked: ticks whose motion the plant does not explain.
        violations: sub-steps with a negative margin while the robot moves; violations_at_rest: while it stands.
        deepest: the most that any margin fell below 0.
        certified, fallback, alarm: ticks.
        path: executed positions, at the ticks.
    """

    ticks: int = 0
    substeps: int = 0
    unchecked: int = 0
    violations: int = 0
    violations_at_rest: int = 0
    deepest: float = 0.0
    certified: int = 0
    fallback: int = 0
    alarm: int = 0
    path: list[list[float]] = field(default_factory=list)


class Monitor:
    """An `OnTick` for `rollout`. An env that executes other actions than those sent says so: info["executed_action"].

    Args:
        safety: what is demanded, whether or not a layer enforces it.
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
        before: Readings,
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
        margin, speed, position = self._executed(start, sent, self._obstacles(before, info, len(sent)))
        explained = (torch.linalg.vector_norm(position - after, dim=-1) <= MODEL_ERROR).numpy()
        moving = (speed > self._safety.assumptions.rest_speed).numpy()
        violates = ~(margin.numpy() >= 0)
        for env in np.flatnonzero(episode >= 0).tolist():
            record = self.records.setdefault(int(episode[env]), EpisodeRecord())
            record.ticks += 1
            record.substeps += self._plant.substeps
            record.unchecked += int(not explained[env])
            record.violations += int((violates[env] & moving[env]).sum())
            record.violations_at_rest += int((violates[env] & ~moving[env]).sum())
            record.deepest = max(record.deepest, -float(margin[env].amin()))
            record.path.append(after[env].tolist())
            if report is not None:
                record.certified += int(report.certified[env])
                record.fallback += int(report.rung[env] in FALLBACK)
                record.alarm += int(report.alarm[env])
        self._commands = torch.cat([start.commands[:, 1:], sent[:, None]], dim=1)

    def _history(self, episode: npt.NDArray[np.intp], state: State) -> Tensor:
        """The last commands [B, 3, A]; where an episode begins, its position."""
        begins = state.position[:, None].expand(-1, PAST_COMMANDS, -1)
        if self._commands is None or self._last_episode is None:
            commands = begins.clone()
        else:
            is_new = torch.from_numpy(episode != self._last_episode)
            commands = torch.where(is_new[:, None, None], begins, self._commands)
        self._last_episode = episode.copy()
        return commands

    def _obstacles(self, before: Readings, info: Mapping[str, Any], batch: int) -> list[Obstacles]:
        """At the end of every sub-step, between where they were before the tick and after it."""
        now = before.obstacles or no_obstacles(batch)
        then = Readings()
        then.update(info, np.ones(batch, dtype=bool))
        later = then.obstacles or now
        still = torch.zeros_like(now.speed)
        made: list[Obstacles] = []
        for row in range(1, self._plant.substeps + 1):
            vertices = torch.lerp(now.vertices, later.vertices, row / self._plant.substeps)
            one = Obstacles(vertices, now.radius, still, now.is_used)
            zones = self._safety.zones
            made.append(together([one, zones.rows(torch.zeros(batch, dtype=torch.long))]) if zones else one)
        return made

    def _executed(self, start: Start, sent: Tensor, obstacles: list[Obstacles]) -> tuple[Tensor, Tensor, Tensor]:
        """The least margin and the speed of every sub-step [B, R], and the position at the end [B, A]."""
        plant = self._plant
        position, velocity = plant.motion(sent[:, None], start.state)
        margins = [torch.full(position.shape[:2], torch.inf, dtype=torch.float64)]
        for constraint in self._safety.constraints:
            rows = constraint.rows
            y = rows_of(rows, plant, plant.period_s, sent[:, None], start)
            times = torch.zeros_like(row_times_s(rows, plant, plant.period_s, 1))
            if rows.segments and rows.acts_on == "motion":
                each = [constraint.margin(y[:, i : i + 1], Scene(o, times[:1])) for i, o in enumerate(obstacles)]
                margins.append(torch.cat(each, dim=1))
            else:
                margins.append(constraint.margin(y, Scene(obstacles[-1], times)).expand(-1, plant.substeps))
        return torch.stack(margins).amin(0), torch.linalg.vector_norm(velocity, dim=-1), position[:, -1]
