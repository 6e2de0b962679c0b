"""Draws samples of plans for the robots of a controller, in calls of the policy.

Shape legend: Q samples, one for each of Q robots; a robot may repeat.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from diffpolicy.control.chunking import Chunking
from diffpolicy.policy.plan_projection import Constrain, Projection
from diffpolicy.policy.protocol import Policy
from diffpolicy.safety.layer import SafetyLayer
from diffpolicy.safety.samples import Samples


@dataclass(frozen=True)
class Drawing:
    """How a controller draws samples; see the arguments of `PolicyController`.

    Attributes:
        warm: the sampler of a robot's first sample if its last plan is known; None draws every sample from noise.
    """

    policy: Policy
    sampler: Any
    warm: Any
    guide: Any
    constrain: Constrain | Projection | None
    inference_batch: int | None

    def draw(self, chunking: Chunking, layer: SafetyLayer | None, robots: Tensor, samples: Tensor) -> Samples:
        """Draw `samples` [Q] of the robots [Q], in one call or in several of the inference batch.

        First samples of robots with a last plan start from it, in calls of their own. Further samples start from noise,
        so that they differ.
        """
        if self.warm is None:
            return self._in_batches(chunking, layer, robots, samples, self.sampler)
        is_warm = chunking.have_plan(robots) & (samples == 0)
        kinds = [(places, sampler) for places, sampler in self._kinds(is_warm) if len(places)]
        parts = [self._in_batches(chunking, layer, robots[at], samples[at], sampler) for at, sampler in kinds]
        order = torch.cat([at for at, _ in kinds]).argsort()
        together = Samples.joined(parts)
        return replace(together.robots(order), cost_s=together.cost_s)

    def _kinds(self, is_warm: Tensor) -> list[tuple[Tensor, Any]]:
        return [(is_warm.nonzero().squeeze(1), self.warm), ((~is_warm).nonzero().squeeze(1), self.sampler)]

    def _in_batches(
        self, chunking: Chunking, layer: SafetyLayer | None, robots: Tensor, samples: Tensor, sampler: Any
    ) -> Samples:
        size = self.inference_batch or len(robots)
        parts = zip(robots.split(size), samples.split(size), strict=True)
        return Samples.joined([self._propose(chunking, layer, *part, sampler) for part in parts])

    def _propose(
        self, chunking: Chunking, layer: SafetyLayer | None, robots: Tensor, samples: Tensor, sampler: Any
    ) -> Samples:
        """Draw samples in one call of the policy. With safety, robots for which it raises are told from the others."""
        states = [one.get_state() for one in chunking.generators(robots, samples)]
        try:
            return self._proposed(chunking, layer, robots, samples, sampler)
        except ValueError as error:
            if layer is None:
                raise
            for one, state in zip(chunking.generators(robots, samples), states, strict=True):
                one.set_state(state)
            if len(robots) == 1:
                return layer.no_plan(int(robots[0]), int(samples[0]), str(error))
        parts = zip(robots.split(1), samples.split(1), strict=True)
        return Samples.joined([self._propose(chunking, layer, *part, sampler) for part in parts])

    def _proposed(
        self, chunking: Chunking, layer: SafetyLayer | None, robots: Tensor, samples: Tensor, sampler: Any
    ) -> Samples:
        """One call, padded to the inference batch."""
        padding = max(0, (self.inference_batch or 0) - len(robots))
        rows = torch.cat([robots, robots[-1:].expand(padding)])
        generators = chunking.generators(robots, samples)
        generators += [torch.Generator() for _ in range(padding)]
        present = self.policy.config.window.n_obs_steps - 1
        projection = layer.projection(rows, present, len(sampler)) if layer is not None else None
        constrain = self.constrain if projection is None else projection
        observation = chunking.observation(rows)
        last = [chunking.shifted_plans(rows)] if sampler is self.warm and sampler is not None else []
        chunk = self.policy.predict_action_chunk(observation, generators, sampler, constrain, self.guide, *last)
        return Samples.of(chunk.plan[: len(robots), present:].float().cpu().clone(), projection)
