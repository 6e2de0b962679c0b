"""The policy controller: one observation in and one action out per tick, within the limits that safety sets.

The controller is in charge: it asks the safety layer for a projection, lets the policy propose samples with it, and
hands them back to the layer, which certifies them and chooses.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from diffpolicy.control.chunking import Chunking, Robots
from diffpolicy.control.deadline import Deadline
from diffpolicy.control.drawing import Drawing
from diffpolicy.control.row_check import warn_of_dependent_rows
from diffpolicy.control.turn import Turn, one_thread_at_a_time
from diffpolicy.diffusion.guidance import Guide
from diffpolicy.policy.observations import Given, checked_observation, told_apart
from diffpolicy.policy.plan_projection import Constrain, Projection
from diffpolicy.policy.protocol import Policy
from diffpolicy.policy.sampler_choices import Sampler
from diffpolicy.safety.layer import SafetyLayer
from diffpolicy.safety.projection import projection_metric
from diffpolicy.safety.report import PlanReport
from diffpolicy.safety.samples import Samples
from diffpolicy.safety.settings import Safety
from diffpolicy.safety.surroundings import Surroundings, given
from diffpolicy.system.tables import Choice, is_choice


class PolicyController:
    """Runs a policy on a batch of robots (or on one: batch 1), each in its own episode.

    Every `n_action_steps` ticks, a robot gets a new chunk from the last `n_obs_steps` observations. In between, its
    actions are read from the chunk. After a reset, the first observation also fills in for the earlier ones.

    With safety and `candidates` K above 1, a robot whose first sample is in doubt gets the other K - 1 in one batched
    call. Each sample has its own stream of noise, and the streams of all K - 1 advance, whichever sample is taken.

    Args:
        policy: a policy that is ready to act, from `DiffusionPolicy.from_pretrained`.
        sampler: a name, a mapping with a name, settings such as `DdimConfig`, or a sampler from `policy.sampler`. With
            `warm_start` in the settings, a robot's first sample starts from its last plan, shifted to the present. A
            robot without one, after a reset, a stop, a late plan or a chunk that safety changed, begins from noise.
        num_inference_steps: overrides the number of steps in the settings; not for a sampler from `policy.sampler`.
        safety: constraints that every action must meet; see docs/safety.md. `last_plan` then reports how the actions of
            the latest tick were decided.
        inference_batch: pads every call of the policy to this batch size, so that an episode is bit-equal alone and
            among others. A network's rounding depends on its batch size and, unless that is a multiple of 16, on the
            row. The controller tests this on the processor at hand; if it does not hold, a RuntimeWarning says what to
            choose. No padding by default. The projection of safety works on all rows together, so with it episodes
            agree only to about 1e-6 of the actions' range.
        guide: steers the samples, from `policy.guide` or your own; see `predict_action_chunk`. By default, the guidance
            in the sampler's settings.
        constrain: your own projection of every clean estimate, in physical units, without a certificate; see
            `predict_action_chunk`.
        clock: seconds, for `last_plan.planning_ms`, `latency_s` and the deadline.
        deadline_ms: how long a tick with a plan may take. Each plan then has the most steps, up to those of `sampler`,
            that are known to fit; `deadline` tells how many. `reset` of all robots measures that on this machine.

    A controller serves one thread at a time; a second one gets a RuntimeError. After a fork, make a new policy and
    controller: torch's threads do not survive a fork, and the child may wait for them for ever.

    Attributes:
        last_plan: the `PlanReport` of the latest tick; None without safety.
        deadline: the `Deadline`, with `steps` of the latest plan and how many plans `missed` it; None without one.
        draws_all: whether all candidates are drawn even if none is needed, to measure what that takes.

    Raises:
        ValueError: the sampler is unknown or does not fit, both safety and constrain are given, inference_batch is
            below 1, the deadline is not above 0, a sampler with fixed steps is to have others, safety is not possible
            (a constraint acts on the motion without a plant, or actions are not normalised by scale and offset).
    """

    def __init__(
        self,
        policy: Policy,
        sampler: Choice | Sampler = "auto",
        num_inference_steps: int | None = None,
        safety: Safety | None = None,
        inference_batch: int | None = None,
        guide: Guide | None = None,
        constrain: Constrain | Projection | None = None,
        clock: Callable[[], float] = time.perf_counter,
        deadline_ms: float | None = None,
    ) -> None:
        if safety is not None and constrain is not None:
            raise ValueError("controller: safety and constrain cannot both be given")
        if inference_batch is not None and inference_batch < 1:
            raise ValueError(f"controller: inference_batch {inference_batch} must be at least 1")
        warm, self.deadline = None, None
        if is_choice(sampler):
            sampling = policy.sampling(sampler, num_inference_steps)
            self.deadline = None if deadline_ms is None else Deadline(policy, sampling, deadline_ms, clock)
            sampler, warm, guide = sampling.sampler, sampling.warm, guide or sampling.guide
        elif num_inference_steps is not None or deadline_ms is not None:
            asked = "deadline_ms" if num_inference_steps is None else f"num_inference_steps {num_inference_steps}"
            raise ValueError(
                f"controller: {asked} is for a sampler given by name or settings; this {type(sampler).__name__} has "
                "its steps already"
            )
        self.policy, self.safety, self.inference_batch = policy, safety, inference_batch
        self.turn = Turn()
        self._drawing = Drawing(policy, sampler, warm, guide, constrain, inference_batch)
        self.last_plan: PlanReport | None = None
        if inference_batch is not None:
            warn_of_dependent_rows(policy, inference_batch)
        self._samples = self.safety.candidates if self.safety else 1
        self._chunking = Chunking(0, policy.config, self._samples)
        self._layer: SafetyLayer | None = None
        self._layer = self._safety_layer(1)
        self._clock, self.draws_all = clock, False

    @property
    def guide(self) -> Guide | None:
        """What steers the samples."""
        return self._drawing.guide

    @one_thread_at_a_time
    def reset(self, seeds: Sequence[int], mask: npt.NDArray[np.bool_] | None = None) -> None:
        """Start new episodes.

        Args:
            seeds: the seeds of the noise, one per robot.
            mask: [batch], which robots start over; all by default. The others continue, and their seeds are ignored.

        Raises:
            ValueError: the seeds are not integers of at least 0, or seeds, mask and batch differ in length. The
                controller is unchanged.
        """
        numbers = np.asarray(seeds)
        if numbers.ndim != 1 or numbers.dtype.kind not in "iu" or (numbers < 0).any():
            raise ValueError(f"reset: seeds are {seeds!r}, expected integers of at least 0, one per robot")
        if mask is None:
            if self.inference_batch is not None and len(seeds) > self.inference_batch:
                raise ValueError(f"reset: {len(seeds)} robots, expected at most inference_batch {self.inference_batch}")
            self._chunking = Chunking(len(seeds), self.policy.config, self._samples)
            self._layer = self._safety_layer(len(seeds))
            if self.deadline is not None:
                self.deadline.measure(self.inference_batch or len(seeds))
            mask = np.ones(len(seeds), dtype=bool)
        elif (mask := np.asarray(mask)).dtype != np.bool_:
            raise ValueError(f"reset: mask is {mask.dtype}, expected bool, one per robot")
        if not len(mask) == len(seeds) == len(self._chunking):
            raise ValueError(f"reset: {len(seeds)} seeds, mask of {len(mask)}, expected {len(self._chunking)} of each")
        self._chunking.begin(seeds, mask)
        if self._layer is not None:
            self._layer.forget(mask)

    @one_thread_at_a_time
    def select_action(
        self, observation: Mapping[str, Given], surroundings: Surroundings | None = None
    ) -> npt.NDArray[np.float32]:
        """The action of this tick [batch, action], in physical units.

        Args:
            observation: {key: [batch, *shape]} of this tick, in physical units. Images may come as a list,
                with None for one that is missing.
            surroundings: what is measured at this tick; used only with safety.

        With safety, a robot that is told something that cannot be used stops with an alarm; the others go on. Its
        action is NaN if its position was never received. See "Bad input" in docs/safety.md.

        Raises:
            ValueError: reset was not called, or an observation has the wrong keys or shape. With safety: the plant
                state is missing although a constraint acts on the motion, or time runs backwards for all robots.
                Without safety: an observation has NaN, or obstacles are given.
        """
        if len(self._chunking) == 0:
            raise ValueError("controller: call reset(seeds) before the first select_action")
        began = self._clock()
        self.last_plan = None
        surroundings = given(surroundings)
        if self._layer is None:
            if surroundings.obstacles is not None:
                raise ValueError("controller: obstacles are given, but the controller has no safety to use them")
            now = checked_observation(observation, self.policy.config.observations, (len(self._chunking),))
            self._chunking.remember(now, torch.ones(len(self._chunking), dtype=torch.bool))
            self._plan(began)
            return self._chunking.next_actions()
        self._keep_safe(self._layer, observation, surroundings)
        self._plan(began)
        last = self._layer.too_late(self._clock() - began)
        if last is not None:
            self._chunking.abandon(np.arange(len(last)), last)
        action = self._chunking.next_actions()
        self.last_plan = self._layer.sent(action, self._clock() - began)
        return action

    def _keep_safe(self, layer: SafetyLayer, observation: Mapping[str, Given], surroundings: Surroundings) -> None:
        """Take in this tick, and let the layer replace the rest of the chunks that are being executed."""
        now, unseen = told_apart(observation, self.policy.config.observations, len(self._chunking))
        is_usable = layer.observe(surroundings, unseen)
        self._chunking.remember(now, torch.tensor([robot not in unseen for robot in range(len(is_usable))]))
        stopped = np.flatnonzero(~is_usable)
        self._chunking.abandon(stopped, layer.last_commands[stopped])
        robots = self._chunking.underway
        if len(robots):
            checked = layer.check(torch.from_numpy(robots), self._chunking.remaining(robots))
            self._chunking.replace_remaining(robots, checked)

    def _plan(self, began: float) -> None:
        """Plan new chunks for the robots that have finished theirs, in a tick that `began` then."""
        due = self._chunking.due
        if len(due) == 0:
            return
        if self.deadline is not None:
            sampling = self.deadline.choose()
            self._drawing = replace(self._drawing, sampler=sampling.sampler, warm=sampling.warm)
        self._plan_for(due)
        if self.deadline is not None:
            self.deadline.took(self._clock() - began)

    def _plan_for(self, due: Robots) -> None:
        robots = torch.from_numpy(due)
        first = self._draw(robots, torch.zeros_like(robots))
        if self._layer is None:
            chunks = first.plans[:, : self.policy.config.window.n_action_steps].numpy()
            self._chunking.start(due, chunks, [first.plans.numpy()])
            return
        considered = self._layer.consider(robots, first)
        if self.draws_all and self._samples > 1:
            considered = replace(considered, doubtful=torch.arange(len(robots)))
        asked = robots[considered.doubtful]
        further = torch.arange(1, self._samples)  # the second sample of each that asks, then the third, and so on
        others = self._draw(asked.repeat(len(further)), further.repeat_interleave(len(asked))) if len(asked) else None
        chunks, plans = self._layer.settle(considered, others), [first.plans.numpy()]
        if others is not None:
            further_plans = others.plans.unflatten(0, (len(further), len(asked)))
            plans += [first.plans.index_copy(0, considered.doubtful, one).numpy() for one in further_plans]
        self._chunking.start(due, chunks, plans)

    def _draw(self, robots: Tensor, samples: Tensor) -> Samples:
        """Draw `samples` [Q] of the robots [Q]."""
        return self._drawing.draw(self._chunking, self._layer, robots, samples)

    def _safety_layer(self, batch: int) -> SafetyLayer | None:
        if self.safety is None:
            return None
        metric, window = projection_metric(self.policy.codec), self.policy.config.window
        if self._layer is not None and self._layer.serves(self.safety, batch, metric):
            return self._layer
        horizon = window.horizon - (window.n_obs_steps - 1)
        return SafetyLayer(self.safety, batch, horizon, window.n_action_steps, metric)
