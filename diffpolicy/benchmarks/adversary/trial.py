"""Runs the adversaries of a scenario against the safety layer and counts what they achieve.

Shape legend: B robots, N milliseconds, A = 2.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from diffpolicy.benchmarks.adversary.demands import rests
from diffpolicy.benchmarks.adversary.policy import KINDS, Adversary
from diffpolicy.benchmarks.adversary.scenario import Scenario
from diffpolicy.benchmarks.adversary.servo import MS
from diffpolicy.benchmarks.adversary.world import Motion, World
from diffpolicy.constraints.fallback import RUNGS
from diffpolicy.control.controller import PolicyController
from diffpolicy.safety.layer import PlanReport
from diffpolicy.safety.settings import Safety

Array = npt.NDArray[np.float64]
ROUNDING = 1e-6  # px, px/s, ...: float64 may be off by that
POSITIONS = ("distance", "workspace", "within", "beside")
LIMITS = (*POSITIONS, "speed", "acceleration", "targets", "target_speed", "target_acceleration")
DEAD_EVERY, DEAD_MS = 4, 1000  # how often the sender dies for good, and for how long that is watched


@dataclass
class Tally:
    """Counts over all robots and ticks.

    Attributes:
        ticks, certified: robot-ticks, and those of them that were called certified.
        violations: certified robot-ticks in whose motion a limit was broken, or would be if nothing more were sent.
        worst: by how much, at most, per limit, in its own units. At most 0 where it was kept.
        first: where the first violation of each limit was seen.
        rungs: robot-ticks per rung of the ladder.
        travelled: px, by all robots together.
    """

    ticks: int = 0
    certified: int = 0
    violations: int = 0
    worst: dict[str, float] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)
    rungs: Counter[str] = field(default_factory=Counter)
    travelled: float = 0.0

    def row(self) -> dict[str, Any]:
        """The counts as one flat row; a limit that the scenario does not have is None."""
        return {
            "ticks": self.ticks,
            "certified": self.certified,
            "violations": self.violations,
            "alarms": self.rungs["hold"],
            **{rung: self.rungs[rung] for rung in RUNGS if rung != "hold"},
            "travelled_px": round(self.travelled / max(1, self.ticks), 1),
            **{f"over_{name}": self.worst.get(name) for name in LIMITS},
            "first": "; ".join(f"{name}: {where}" for name, where in self.first.items()),
        }


def safety_of(scenario: Scenario) -> Safety:
    """What the controller is told about the scenario."""
    plant = scenario.servo.declared()
    return Safety(
        scenario.limits.constraints(),
        plant,
        scenario.assumptions,
        mode=scenario.mode,
        candidates=scenario.candidates,
        slots=scenario.obstacles if scenario.slots is None else scenario.slots,
        period_s=plant.period_s,
    )


class Trial:
    """One batch of robots, each with one kind of adversary, that runs for as long as it is told to."""

    def __init__(self, scenario: Scenario, robots: int, seed: int) -> None:
        self._scenario, self._random = scenario, np.random.default_rng([seed, 1])
        policy: Any = Adversary(scenario.n_action_steps, scenario.reach)  # a Policy, but one cannot train or save it
        one_call: Any = range(1)
        self._controller = PolicyController(policy, one_call, safety=safety_of(scenario), clock=self._clock)
        self._time_s = 0.0
        self._seeds = [seed * robots + robot for robot in range(robots)]
        self._controller.reset(self._seeds)
        self._world = World(scenario, robots, seed)
        self._world.begin(np.ones(robots, dtype=bool))
        self._sent = np.zeros((robots, 4, 2))
        self._is_new = np.ones(robots, dtype=bool)
        assumed = scenario.assumptions
        is_exact = assumed.position_error == assumed.tracking_error == 0  # then a robot may be inside by rounding
        deep = assumed.tolerance if is_exact else ROUNDING
        self._allowed = {name: deep if name in POSITIONS else ROUNDING for name in LIMITS}
        self.tally = Tally()

    def run(self, ticks: int) -> Tally:
        """Go on for so many ticks."""
        for _ in range(ticks):
            ends = self._random.random(len(self._seeds)) < self._scenario.resets
            if ends.any():
                self._controller.reset(self._seeds, ends)
                self._world.begin(ends)
                self._is_new |= ends
            self._tick()
        return self.tally

    def _tick(self) -> None:
        seen, surroundings = self._world.sense()
        actions = self._controller.select_action(seen, surroundings).astype(np.float64)
        report = self._controller.last_plan
        assert report is not None
        assert surroundings.plant_state is not None
        measured = np.nan_to_num(surroundings.plant_state.position.numpy(), posinf=0.0)  # if lost, nothing is certified
        self._sent = np.where(self._is_new[:, None, None], measured[:, None], self._sent)
        self._sent = np.concatenate([self._sent[:, 1:], actions[:, None]], axis=1)
        self._is_new &= np.isnan(actions[:, 0])
        targets = self._scenario.limits.excess_of_targets(self._sent, MS * self._scenario.servo.period_ms)
        motion = self._world.act(actions)
        found = targets | self.excess(motion)
        self._count(report, found, motion)

    def excess(self, motion: Motion) -> dict[str, Array]:
        """By how much each limit is exceeded at most, [B] each."""
        scenario = self._scenario
        limits, path = scenario.limits, (motion.positions, motion.velocities)
        found = limits.excess_of_motion(scenario.servo, *path)
        if limits.distance is not None:
            resting = rests(scenario.servo, *path, scenario.assumptions.rest_speed)
            found["distance"] = limits.excess_of_distance(
                motion.positions, motion.before, motion.after, motion.share, resting
            )
        return {name: np.where(motion.share <= 1.0, one, -np.inf).max(1) for name, one in found.items()}

    def _clock(self) -> float:
        """The controller's clock, by which some plans take too long."""
        if self._random.random() < self._scenario.slow:
            self._time_s += 2.0 * self._scenario.assumptions.latency_s
        return self._time_s

    def _count(self, report: PlanReport, found: dict[str, Array], motion: Motion) -> None:
        tally, certified = self.tally, report.certified
        if self._random.random() < 1.0 / DEAD_EVERY:
            for name, dead in self.excess(self._world.left_alone(DEAD_MS)).items():
                found[name] = np.maximum(found[name], dead)
        tally.ticks += len(certified)
        tally.certified += int(certified.sum())
        tally.rungs.update(report.rung.tolist())
        tally.travelled += float(np.linalg.norm(np.diff(motion.positions[:, [0, -1]], axis=1), axis=-1).sum())
        is_broken = np.zeros(len(certified), dtype=bool)
        for name, excess in found.items():
            excess = np.where(certified, np.nan_to_num(excess, nan=np.inf), -np.inf)
            robot = int(excess.argmax())
            tally.worst[name] = max(tally.worst.get(name, -np.inf), float(excess[robot]))
            is_broken |= excess > self._allowed[name]
            if excess[robot] > self._allowed[name] and name not in tally.first:
                tick, kind = tally.ticks // len(certified), KINDS[robot % len(KINDS)]
                tally.first[name] = f"tick {tick}, robot {robot} ({kind}), {report.rung[robot]}"
        tally.violations += int(is_broken.sum())
