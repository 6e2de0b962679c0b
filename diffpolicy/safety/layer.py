"""The safety layer: the network proposes, the projection constrains, the certificate decides.

At every tick there is a way to stop.

Shape legend: B robots, Q of them in a call, H rows of a plan from the present on (the first n are its chunk), A action.
"""

import time
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from diffpolicy.constraints.certificate import Certificate, Certifier
from diffpolicy.constraints.fallback import CANDIDATE, HOLD, PLAN, PREFIX, RETREAT, RUNGS, decide
from diffpolicy.constraints.planar.obstacles import no_obstacles
from diffpolicy.constraints.projector import Projector
from diffpolicy.constraints.trajectory import Start
from diffpolicy.safety.dead_end import BACK, NEW, DeadEnd
from diffpolicy.safety.memory import RobotMemory
from diffpolicy.safety.projection import SafetyProjection
from diffpolicy.safety.samples import Considered, Samples
from diffpolicy.safety.settings import Safety
from diffpolicy.safety.surroundings import Surroundings

Actions = npt.NDArray[np.float32]

LARGE_SHIFT = 0.02  # of half the range of the actions; a plan moved further is compared with other samples


@dataclass(frozen=True)
class PlanReport:
    """How the actions of one tick were decided.

    Attributes:
        certified: [B], whether a certificate holds for the action and for a way to stop after it.
        margin: [B], a lower bound on the margin of what will be sent, in units of the tightest constraint. NaN if the
            certificate is from an earlier tick, or if plans are not certified. On hold, the margin of stopping at once.
        rung: [B], the rung of the ladder: plan (the first sample, or the rest of one), candidate (another sample),
            retreat (back out of a dead end), prefix (certified rows, then a way to stop), stored (the way to stop of an
            earlier certificate), hold.
        alarm: [B], whether nothing certified is left and the robot is told to hold. Call an operator.
        cost_ms: the time spent on projection and certificate, for all robots together.
    """

    certified: npt.NDArray[np.bool_]
    margin: npt.NDArray[np.float64]
    rung: npt.NDArray[np.str_]
    alarm: npt.NDArray[np.bool_]
    cost_ms: float


class SafetyLayer:
    """Turns proposed chunks into chunks whose every row may be sent, and checks them again at every tick.

    Args:
        safety: the constraints and how to meet them.
        batch: B, the number of robots.
        horizon: H, the rows of a plan from the present on.
        n_action_steps: n, the rows of a chunk.
        metric: [A], the square of the action normaliser's scale.
    """

    def __init__(self, safety: Safety, batch: int, horizon: int, n_action_steps: int, metric: Tensor) -> None:
        self.safety = safety
        self._n, self._metric = n_action_steps, metric
        self._projector = Projector(
            safety.constraints, safety.plant, safety.period_s, horizon, metric, safety.all_slots
        )
        self._certifier = Certifier(safety.constraints, safety.plant, safety.period_s, safety.assumptions)
        self._memory = RobotMemory(batch, len(metric), self._certifier.stop_ticks, safety.plant, safety.assumptions)
        self._dead_end = DeadEnd(batch, self._projector.half_range)
        self._obstacles = no_obstacles(batch)
        self._margin = torch.full((batch,), torch.nan, dtype=torch.float64)
        self._cost_s = 0.0

    def serves(self, safety: Safety, batch: int, metric: Tensor) -> bool:
        """Whether this layer, after `forget`, equals a new one for these arguments but keeps what was captured."""
        is_where_it_was = metric.device == self._metric.device
        is_same = safety is self.safety and batch == len(self._margin)
        return is_same and is_where_it_was and torch.equal(metric, self._metric)

    def forget(self, mask: npt.NDArray[np.bool_]) -> None:
        """Start new episodes for the robots of `mask` [B]."""
        self._memory.forget(torch.from_numpy(mask))
        self._dead_end.forget(torch.from_numpy(mask))

    def observe(self, surroundings: Surroundings) -> None:
        """Take in what is measured at this tick. Call it before new plans and `check`; `sent` ends the tick.

        Raises:
            ValueError: the plant state is missing although a constraint acts on the motion or the episode begins, a
                shape is wrong, there are more obstacles than slots, or time runs backwards.
        """
        batch = len(self._margin)
        obstacles = no_obstacles(batch) if surroundings.obstacles is None else surroundings.obstacles
        if obstacles.slots and not any(c.quantity.segments for c in self.safety.constraints):
            raise ValueError("obstacles: given, but no constraint looks at them; add KeepOut")
        if len(obstacles.radius) != batch:
            raise ValueError(f"obstacles: for {len(obstacles.radius)} robots, expected {batch}")
        now = self.safety.with_zones(obstacles.padded(self.safety.slots))
        if not now.equals(self._obstacles):  # keep what is cached with unchanged obstacles
            self._obstacles = now
        surroundings = replace(surroundings, obstacles=self._obstacles)
        self._memory.observe(surroundings, self.safety.period_s, self.safety.acts_on_motion)
        if self.safety.certify:
            self._dead_end.visit(self._memory.start.state.position)
        self._cost_s = 0.0

    def projection(self, robots: Tensor, present: int, steps: int) -> SafetyProjection | None:
        """The projection to propose new plans with; None if the mode is none.

        Args:
            robots: [Q], one for each row of the policy's batch. A robot may repeat, for padding or for another sample.
            present: the index of the present in a plan.
            steps: the number of rows of the sampler.
        """
        if self.safety.mode == "none":
            return None
        task = self._projector.task(self._memory.start.robots(robots), self._obstacles.robots(robots))
        return SafetyProjection(self.safety, self._projector, task, present, steps)

    def consider(self, robots: Tensor, first: Samples) -> Considered:
        """Certify the first sample of each of the robots [Q] that need a new plan, and find who needs other samples."""
        self._cost_s += first.cost_s
        rung, nobody = torch.full((len(robots),), PLAN), torch.zeros(0, dtype=torch.long)
        if not self.safety.certify:
            return Considered(robots, first, None, rung, nobody)
        found = self._certify(first, robots)
        doubtful = self._doubtful(first, found) if self.safety.candidates > 1 else nobody
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
            considered = self._chosen(considered, others)
        robots, samples, rung = considered.robots, considered.samples, considered.rung.clone()
        chunks, rests = samples.plans[:, : self._n].clone(), samples.plans[:, self._n :]
        if considered.found is None:
            return chunks.numpy()
        found, start = considered.found, self._memory.start.robots(robots)
        ways = self._dead_end.turn(robots, start.state.position, self._is_troubled(samples, found), rests)
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

    def sent(self, actions: Actions) -> PlanReport:
        """Remember the actions of this tick [B, A] and report on them."""
        self._memory.advance(torch.from_numpy(actions).double())
        rung = self._memory.rung.numpy()
        is_held = rung == HOLD
        certified = ~is_held if self.safety.certify else np.zeros(len(rung), dtype=bool)
        return PlanReport(certified, self._margin.numpy().copy(), np.array(RUNGS)[rung], is_held, 1e3 * self._cost_s)

    def _decided(self, robots: Tensor, chunks: Tensor, found: Certificate, rung: Tensor, is_fresh: bool) -> Actions:
        decision = decide(chunks.double(), found, self._memory.situation(robots, is_fresh), rung)
        self._memory.stored[robots] = decision.stored
        self._memory.rung[robots] = decision.rung
        self._margin[robots] = decision.margin
        return decision.chunks.float().numpy()

    def _chosen(self, considered: Considered, others: Samples) -> Considered:
        """The best of the samples. A robot takes no further sample once it is no longer in doubt."""
        asked, expected = considered.doubtful, (self.safety.candidates - 1) * len(considered.doubtful)
        if considered.found is None or len(others.plans) != expected:
            raise ValueError(f"safety: {len(others.plans)} further samples, expected {expected}")
        self._cost_s += others.cost_s
        samples, found, rung = considered.samples, considered.found, considered.rung.clone()
        left = torch.arange(len(asked))  # the robots still in doubt
        for sample in range(self.safety.candidates - 1):
            doubtful = asked[left]
            new = others.robots(sample * len(asked) + left)
            again = self._certify(new, considered.robots[doubtful])
            is_better = new.worth(again) > samples.robots(doubtful).worth(found.robots(doubtful))
            better = doubtful[is_better]
            samples = samples.replaced(better, new.robots(is_better))
            found = found.replaced(better, again.robots(is_better))
            rung[better] = CANDIDATE
            left = left[self._doubtful(samples.robots(doubtful), found.robots(doubtful))]
            if len(left) == 0:
                break
        return Considered(considered.robots, samples, found, rung, asked[left])

    def _is_troubled(self, samples: Samples, found: Certificate) -> Tensor:
        """[Q], whether a plan is not certified as a whole, or was moved far from what the policy wanted."""
        return (found.length < self._n) | (samples.shift > LARGE_SHIFT)

    def _doubtful(self, samples: Samples, found: Certificate) -> Tensor:
        """Indices of the plans that are troubled or do not lead on."""
        return (self._is_troubled(samples, found) | ~samples.is_open).nonzero().squeeze(1)

    def _certify(self, samples: Samples, robots: Tensor) -> Certificate:
        return self._certified(samples.plans[:, : self._n], robots)

    def _certified(self, chunks: Tensor, robots: Tensor) -> Certificate:
        began = time.perf_counter()
        start: Start = self._memory.start.robots(robots)
        found = self._certifier.certify(chunks, start, self._obstacles.robots(robots))
        self._cost_s += time.perf_counter() - began
        return found
