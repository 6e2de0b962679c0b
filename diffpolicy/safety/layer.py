"""The safety layer: the network proposes, the projection constrains, the certificate decides, and one can always stop.

Shape legend: B robots, Q of them in a call, H rows of a plan from the present on (the first n are its chunk), A action.
"""

import time
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from diffpolicy.constraints.calls import check_contract
from diffpolicy.constraints.certificate import Certificate, Certifier
from diffpolicy.constraints.fallback import HOLD, PLAN, PREFIX, RETREAT, RUNGS, SLOWER, decide
from diffpolicy.constraints.planar.obstacles import no_obstacles
from diffpolicy.constraints.projector import Projector
from diffpolicy.constraints.trajectory import Start
from diffpolicy.safety.choice import best_of, in_doubt, in_smaller_steps, is_troubled
from diffpolicy.safety.dead_end import BACK, NEW, DeadEnd
from diffpolicy.safety.memory import RobotMemory
from diffpolicy.safety.projection import SafetyProjection
from diffpolicy.safety.report import PlanReport
from diffpolicy.safety.samples import Considered, Samples
from diffpolicy.safety.settings import Safety
from diffpolicy.safety.surroundings import Surroundings

Actions = npt.NDArray[np.float32]

STILL = 1e-6  # relative change of a command that is one by rounding only


class SafetyLayer:
    """Turns proposed chunks into chunks whose every row may be sent, and checks them again at every tick.

    Args:
        safety: the constraints and how to meet them.
        batch: B, the number of robots.
        horizon: H, the rows of a plan from the present on.
        n_action_steps: n, the rows of a chunk.
        metric: [A], the square of the action normaliser's scale.

    Raises:
        ContractError: a user's constraint returns something other than the protocol demands.
    """

    def __init__(self, safety: Safety, batch: int, horizon: int, n_action_steps: int, metric: Tensor) -> None:
        check_contract(safety.constraints, len(metric))
        self.safety = safety
        self._n, self._horizon, self._metric = n_action_steps, horizon, metric
        self._projector = Projector(safety.constraints, safety.plant, safety.tick_s, horizon, metric, safety.all_slots)
        self._certifier = Certifier(safety.constraints, safety.plant, safety.tick_s, safety.assumptions)
        self._memory = RobotMemory(batch, len(metric), self._certifier.stop_ticks, safety.plant, safety.assumptions)
        self._dead_end = DeadEnd(batch, self._projector.half_range)
        self._obstacles = no_obstacles(batch)
        self._margin = torch.full((batch,), torch.nan, dtype=torch.float64)
        self._may_hold = torch.zeros(batch, dtype=torch.bool)  # whether holding the last command is certified
        self._stuck = torch.zeros(batch, dtype=torch.long)
        self._unusable: dict[int, str] = {}  # robots that cannot get a plan at this tick, and why
        self._cost_s, self._late = 0.0, ""

    def serves(self, safety: Safety, batch: int, metric: Tensor) -> bool:
        """Whether this layer, after `forget`, equals a new one for these arguments but keeps what was captured."""
        is_where_it_was = metric.device == self._metric.device
        is_same = safety is self.safety and batch == len(self._margin)
        return is_same and is_where_it_was and torch.equal(metric, self._metric)

    def forget(self, mask: npt.NDArray[np.bool_]) -> None:
        """Start new episodes for the robots of `mask` [B]."""
        self._memory.forget(torch.from_numpy(mask))
        self._dead_end.forget(torch.from_numpy(mask))
        self._stuck[torch.from_numpy(mask)] = 0

    def observe(self, surroundings: Surroundings, unusable: Mapping[int, str] | None = None) -> npt.NDArray[np.bool_]:
        """Take in what is measured at this tick. Call it before new plans and `check`; `sent` ends the tick.

        Args:
            unusable: {robot: why} for robots that cannot get a plan at this tick, whatever is measured here.

        Returns:
            [B], which robots can get a plan. The others are to stop, and need a `check` to tell them how.

        Raises:
            ValueError: the plant state is missing although a constraint acts on the motion or the episode begins, a
                shape is wrong, or time runs backwards for all robots.
        """
        batch = len(self._margin)
        obstacles = surroundings.obstacles or no_obstacles(batch)
        if obstacles.slots and not any(c.quantity.segments for c in self.safety.constraints):
            raise ValueError("obstacles: given, but no constraint looks at them; add KeepOut")
        if len(obstacles.radius) != batch:
            raise ValueError(f"obstacles: for {len(obstacles.radius)} robots, expected {batch}")
        now = self.safety.with_zones(obstacles.padded(max(self.safety.slots, obstacles.slots)))
        if not now.equals(self._obstacles):  # keep what is cached with unchanged obstacles
            self._obstacles = now
        surroundings = replace(surroundings, obstacles=self._obstacles)
        self._memory.observe(surroundings, self.safety.tick_s, self.safety.acts_on_motion)
        if self.safety.certify:
            self._dead_end.visit(self._memory.start.state.position)
        self._unusable = {**self.safety.unusable(self._obstacles), **self._memory.unusable, **(unusable or {})}
        self._may_hold = self._memory.may_follow_stored.clone()
        self._cost_s, self._late = 0.0, ""
        return ~np.isin(np.arange(batch), list(self._unusable))

    def projection(self, robots: Tensor, present: int, steps: int) -> SafetyProjection | None:
        """The projection to propose new plans with; None if the mode is none.

        Args:
            robots: [Q], one for each row of the policy's batch. A robot may repeat, for padding or for another sample.
            present: the index of the present in a plan.
            steps: the number of rows of the sampler.
        """
        if self.safety.mode == "none":
            return None
        obstacles = self._obstacles.first(self.safety.all_slots).robots(robots)
        task = self._projector.task(self._memory.start.robots(robots), obstacles)
        return SafetyProjection(self.safety, self._projector, task, present, steps)

    @property
    def last_commands(self) -> Actions:
        """[B, A], what the robots were told last; NaN if they have not been told anything."""
        return self._memory.start.commands[:, -1].float().numpy()

    def no_plan(self, robot: int, sample: int, why: str) -> Samples:
        """A sample that could not be made. If it is a robot's first one, the robot is to stop."""
        if sample == 0:
            self._unusable[robot] = why
        return Samples.of(torch.full((1, self._horizon, len(self._metric)), torch.nan), None)

    def consider(self, robots: Tensor, first: Samples) -> Considered:
        """Certify the first sample of each of the robots [Q] that need a new plan, and find who needs other samples."""
        self._cost_s += first.cost_s
        rung, nobody = torch.full((len(robots),), PLAN), torch.zeros(0, dtype=torch.long)
        if not self.safety.certify:
            return Considered(robots, first, None, rung, nobody)
        found = self._certified(first.plans[:, : self._n], robots)
        doubtful = in_doubt(first, found, self._n) if self.safety.candidates > 1 else nobody
        return Considered(robots, first, found, rung, doubtful)

    def settle(self, considered: Considered, others: Samples | None = None) -> Actions:
        """New chunks [Q, n, A] for the robots that were considered.

        Among the samples certified longest, one that can continue is chosen, then the one that was moved least. A robot
        in a dead end gets the rest of its last plan or the way back instead.

        Args:
            others: further samples of the robots in doubt: the second one of each robot, then the third of each, and so
                on. None if no robot is in doubt.
        """
        if others is not None:
            considered = self._chosen_among(considered, others)
        robots, samples, rung = considered.robots, considered.samples, considered.rung.clone()
        chunks, rests = samples.plans[:, : self._n].clone(), samples.plans[:, self._n :]
        if considered.found is None:
            return chunks.numpy()
        found, start = considered.found, self._memory.start.robots(robots)
        found = self._slowed(robots, chunks, found, rung)
        ways = self._dead_end.turn(robots, start.state.position, is_troubled(samples, found, self._n), rests)
        other = (ways != NEW).nonzero().squeeze(1)
        if len(other):
            rows = self._dead_end.next_rows(robots[other], start.commands[other, -1], self._n)
            chunks[other], rung[other] = rows.float(), torch.where(ways[other] == BACK, RETREAT, PLAN)
            found = found.replaced(other, self._certified(chunks[other], robots[other]))
        return self._decided(robots, chunks, found, rung, is_fresh=True)

    def check(self, robots: Tensor, remaining: Actions) -> Actions:
        """Certify the rest of these robots' chunks [Q, n, A] again. Returns it, or what to send instead."""
        if not self.safety.certify or len(robots) == 0:
            return remaining
        chunks = torch.from_numpy(remaining)
        found = self._certified(chunks, robots)
        rung = self._memory.rung[robots].clamp(max=PREFIX)  # it is certified again, whatever the rung was
        return self._decided(robots, chunks, found, rung, is_fresh=False)

    def too_late(self, planning_s: float) -> Actions | None:
        """What all robots [B, A] are sent after planning for so long: their last command. None if it is not too long.

        Nothing changes with it: that the last command may be held for ever, an earlier certificate or the one of this
        tick says. With latency_s 0, time is taken to stand still while plans are made, as in a simulation.
        """
        limit = self.safety.assumptions.latency_s
        if not self.safety.certify or not 0.0 < limit < planning_s:
            return None
        self._late = f"plan: took {1e3 * planning_s:.0f} ms, expected at most {1e3 * limit:.0f} ms (latency_s)"
        self._memory.hold(self._may_hold)
        self._margin[:] = torch.nan
        return self.last_commands

    def sent(self, actions: Actions, planning_s: float = 0.0) -> PlanReport:
        """Remember the actions of this tick [B, A], which took so long to plan, and report on them."""
        sent, before = torch.from_numpy(actions).double(), self._memory.start.commands[:, -1]
        stays = ((sent - before).abs() <= STILL * before.abs()).all(1) & (self._memory.rung > SLOWER)
        self._stuck = torch.where(stays, self._stuck + 1, 0)
        self._memory.advance(sent)
        rung = self._memory.rung.numpy()
        is_held, everyone = rung == HOLD, list(range(len(rung)))
        why = [self._unusable.get(i) or self._late or (self._why_held(i) if is_held[i] else "") for i in everyone]
        certified, alarm = ~is_held & self.safety.certify, is_held | np.isin(everyone, list(self._unusable))
        told = np.array(RUNGS)[rung], alarm, np.array(why), self._stuck.numpy().copy(), bool(self._late)
        return PlanReport(certified, self._margin.numpy().copy(), *told, 1e3 * planning_s, 1e3 * self._cost_s)

    def _why_held(self, robot: int) -> str:
        one = torch.tensor([robot])
        if not bool(self._memory.situation(one, is_fresh=True).is_known):
            return "plant_state: not received, and no way to stop is left"
        return self._certifier.reason(self._memory.start.robots(one), self._obstacles.robots(one))

    def _slowed(self, robots: Tensor, chunks: Tensor, found: Certificate, rung: Tensor) -> Certificate:
        """Where no row is certified, put the same way in smaller steps in its place [Q, n, A], as large as may be."""
        short = (found.length == 0).nonzero().squeeze(1)
        if len(short) == 0:
            return found
        smaller = in_smaller_steps(chunks[short], self._memory.start.commands[robots[short], -1])
        tried = self._certified(smaller.flatten(0, 1), robots[short].repeat(len(smaller)))
        length, share = tried.length.view(len(smaller), -1).max(0)  # the first of equals is the largest
        better = (length > 0).nonzero().squeeze(1)
        index = short[better]
        chunks[index], rung[index] = smaller[share[better], better], SLOWER
        return found.replaced(index, tried.robots(share[better] * len(short) + better))

    def _decided(self, robots: Tensor, chunks: Tensor, found: Certificate, rung: Tensor, is_fresh: bool) -> Actions:
        now = self._memory.situation(robots, is_fresh, self._unusable)
        decision = decide(chunks.double(), found, now, rung)
        stays = (found.stops[:, 0] == now.last.float().double()[:, None]).all(-1).all(-1)
        self._may_hold[robots] |= now.is_known & found.can_stop & stays
        self._memory.stored[robots] = decision.stored
        self._memory.rung[robots] = decision.rung
        self._margin[robots] = decision.margin
        return decision.chunks.float().numpy()

    def _chosen_among(self, considered: Considered, others: Samples) -> Considered:
        further = self.safety.candidates - 1
        if len(others.plans) != further * len(considered.doubtful):
            raise ValueError(
                f"safety: {len(others.plans)} further samples, expected {further * len(considered.doubtful)}"
            )
        self._cost_s += others.cost_s
        robots = considered.robots[considered.doubtful].repeat(further)
        found = self._certified(others.plans[:, : self._n], robots)
        return best_of(considered, others, found, further, self._n)

    def _certified(self, chunks: Tensor, robots: Tensor) -> Certificate:
        began = time.perf_counter()
        start: Start = self._memory.start.robots(robots)
        found = self._certifier.certify(chunks, start, self._obstacles.robots(robots))
        self._cost_s += time.perf_counter() - began
        return found
