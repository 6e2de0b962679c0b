"""The network proposes, the projection constrains, the certificate decides, and there is always a way to stop.

Shape legend: B robots, Q of them that a call is about, H rows of a plan from the present on, the first n of which are
its chunk, A action.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from diffpolicy.constraints.certificate import Certificate, Certifier
from diffpolicy.constraints.fallback import CANDIDATE, HOLD, PLAN, PREFIX, RETREAT, RUNGS, decide
from diffpolicy.constraints.planar.obstacles import Obstacles, no_obstacles
from diffpolicy.constraints.projector import Projector
from diffpolicy.constraints.trajectory import Start
from diffpolicy.safety.dead_end import BACK, NEW, DeadEnd
from diffpolicy.safety.memory import RobotMemory
from diffpolicy.safety.projection import StepProjection
from diffpolicy.safety.settings import Safety

Actions = npt.NDArray[np.float32]
MakeProjection = Callable[[Tensor, int, int], StepProjection]
"""(robots [Q], index of the present in a plan, steps of the sampler) -> their projection."""
Propose = Callable[[Tensor, int, MakeProjection | None], Actions]
"""(robots [Q], which sample of each, projection) -> plans [Q, H, A]."""


LARGE_SHIFT = 0.02  # of half the range of the actions: a plan moved farther is compared with other samples


@dataclass(frozen=True)
class PlanReport:
    """What stands behind the actions of one tick.

    Attributes:
        certified: [B], whether a certificate holds for the action and for a way to stop after it.
        margin: [B], a lower bound of the margins of what is to be sent, in units of the tightest constraint; NaN where
            the certificate is an earlier one's, or none.
        rung: [B], of the ladder: plan (the first sample, or the rest of one), candidate (another sample), retreat
            (back out of a dead end), prefix (certified rows, then a way to stop), stored (the way to stop of an earlier
            certificate), hold.
        alarm: [B], where nothing certified is left and the robot is told to hold: call somebody.
        cost_ms: of projection and certificate, all robots together.
    """

    certified: npt.NDArray[np.bool_]
    margin: npt.NDArray[np.float64]
    rung: npt.NDArray[np.str_]
    alarm: npt.NDArray[np.bool_]
    cost_ms: float


@dataclass(frozen=True)
class _Samples:
    """Plans in two parts [Q, n, A], [Q, H - n, A]; of `StepProjection`, how far moved [Q], whether they lead on [Q]."""

    chunks: Tensor
    rests: Tensor
    shift: Tensor
    is_open: Tensor

    def worth(self, found: Certificate) -> Tensor:
        """[Q]: by certified rows, then whether they lead on, then how little they were moved."""
        return 2.0 * found.length.double() + self.is_open.double() - self.shift.double() / (1.0 + self.shift.double())

    def robots(self, index: Tensor) -> "_Samples":
        """Those of `index`."""
        return _Samples(self.chunks[index], self.rests[index], self.shift[index], self.is_open[index])

    def replace(self, index: Tensor, other: "_Samples") -> None:
        """Put `other` in the place of those of `index`."""
        self.chunks[index], self.rests[index] = other.chunks, other.rests
        self.shift[index], self.is_open[index] = other.shift, other.is_open


class SafetyLayer:
    """Turns proposed chunks into chunks whose every row may be sent, and looks at them again at every tick.

    Args:
        safety: what is demanded.
        batch: B.
        horizon: H.
        n_action_steps: n.
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
        """Whether one made for these would be like this one after `forget`; this one keeps what was captured for it."""
        is_where_it_was = metric.device == self._metric.device
        is_same = safety is self.safety and batch == len(self._margin)
        return is_same and is_where_it_was and torch.equal(metric, self._metric)

    def forget(self, mask: npt.NDArray[np.bool_]) -> None:
        """New episodes for the robots of `mask` [B]."""
        self._memory.forget(torch.from_numpy(mask))
        self._dead_end.forget(torch.from_numpy(mask))

    def observe(self, plant_state: Any, obstacles: Obstacles | None, time_s: npt.ArrayLike | None) -> None:
        """Take in what is measured at this tick; then come `plan` and `check`, then `sent`.

        Args:
            plant_state: `State` of [B, A] arrays; NaN where a robot's was not received.
            obstacles: as they are now; none by default.
            time_s: one number or [B]; by default a period after the last.

        Raises:
            ValueError: no plant state though a constraint acts on the motion or the episode begins, a wrong shape, more
                obstacles than slots, time that runs backwards.
        """
        batch = len(self._margin)
        obstacles = no_obstacles(batch) if obstacles is None else obstacles
        if obstacles.slots and not any(c.quantity.segments for c in self.safety.constraints):
            raise ValueError("obstacles: given, but no constraint looks at them; add KeepOut")
        if len(obstacles.radius) != batch:
            raise ValueError(f"obstacles: for {len(obstacles.radius)} robots, expected {batch}")
        now = self.safety.with_zones(obstacles.padded(self.safety.slots))
        if not now.equals(self._obstacles):  # what is known of obstacles that stand is kept with them
            self._obstacles = now
        self._memory.observe(plant_state, self._obstacles, time_s, self.safety.period_s, self.safety.acts_on_motion)
        if self.safety.certify:
            self._dead_end.visit(self._memory.start.state.position)
        self._cost_s = 0.0

    def plan(self, due: Tensor, propose: Propose) -> Actions:
        """New chunks [Q, n, A] for the robots `due`.

        Of the samples certified longest, one that leads on, and of those the one that was moved least; where a robot
        gets nowhere, the rest of its last plan or the way back.
        """
        drawn = self._proposed(due, PLAN, propose)
        if not self.safety.certify:
            return drawn.chunks.numpy()
        rung = torch.full((len(due),), PLAN)
        found = self._certify(drawn.chunks, due)
        for sample in range(1, self.safety.candidates):
            doubtful = (self._is_troubled(drawn, found) | ~drawn.is_open).nonzero().squeeze(1)
            if len(doubtful) == 0:
                break
            others = self._proposed(due[doubtful], sample, propose)
            again = self._certify(others.chunks, due[doubtful])
            better = others.worth(again) > drawn.robots(doubtful).worth(found.robots(doubtful))
            chosen = doubtful[better]
            drawn.replace(chosen, others.robots(better))
            rung[chosen], found = CANDIDATE, found.replaced(chosen, again.robots(better))
        start, is_troubled = self._memory.start.robots(due), self._is_troubled(drawn, found)
        ways = self._dead_end.turn(due, start.state.position, is_troubled, drawn.rests)
        other = (ways != NEW).nonzero().squeeze(1)
        if len(other):
            rows = self._dead_end.next_rows(due[other], start.commands[other, -1], self._n)
            drawn.chunks[other], rung[other] = rows.float(), torch.where(ways[other] == BACK, RETREAT, PLAN)
            found = found.replaced(other, self._certify(drawn.chunks[other], due[other]))
        return self._decided(due, drawn.chunks, found, rung, is_fresh=True)

    def check(self, robots: Tensor, remaining: Actions) -> Actions:
        """What these robots go on with: what remains of their chunks, filled up to [Q, n, A], or less."""
        if not self.safety.certify or len(robots) == 0:
            return remaining
        chunks = torch.from_numpy(remaining)
        found = self._certify(chunks, robots)
        rung = self._memory.rung[robots].clamp(max=PREFIX)  # certified again, whatever it was
        return self._decided(robots, chunks, found, rung, is_fresh=False)

    def sent(self, actions: Actions) -> PlanReport:
        """Remember the actions of this tick [B, A], and report on them."""
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

    def _proposed(self, robots: Tensor, sample: int, propose: Propose) -> _Samples:
        made: list[StepProjection] = []

        def projection(rows: Tensor, present: int, steps: int) -> StepProjection:
            task = self._projector.task(self._memory.start.robots(rows), self._obstacles.robots(rows))
            made.append(StepProjection(self.safety, self._projector, task, present, steps))
            return made[-1]

        plans = torch.from_numpy(propose(robots, sample, None if self.safety.mode == "none" else projection))
        self._cost_s += sum(one.cost_s for one in made)
        shift = made[0].shift[: len(robots)].cpu() if made else torch.zeros(len(robots))
        is_open = made[0].is_open[: len(robots)].cpu() if made else torch.ones(len(robots), dtype=torch.bool)
        return _Samples(plans[:, : self._n], plans[:, self._n :], shift.clone(), is_open.clone())

    def _is_troubled(self, drawn: "_Samples", found: Certificate) -> Tensor:
        """[Q], whose plan is not certified as a whole or not nearly what the policy wanted."""
        return (found.length < self._n) | (drawn.shift > LARGE_SHIFT)

    def _certify(self, chunks: Tensor, robots: Tensor) -> Certificate:
        began = time.perf_counter()
        start: Start = self._memory.start.robots(robots)
        found = self._certifier.certify(chunks, start, self._obstacles.robots(robots))
        self._cost_s += time.perf_counter() - began
        return found
