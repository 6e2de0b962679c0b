"""Consistency trajectory models: one evaluation crosses the interval from any level to any lower one.

The network sees the level t and the level s where the step ends. Its clean estimate g(x, t, s) makes DDIM's step from t
to s end on the path. It is compared with a step that first goes a short way to a level u, along the teacher's path or,
without a teacher, along the line through the same clean trajectory and noise, and from u to s with the network itself.
In addition g(x, t, t) is trained to denoise, as the same network without a stop would be. Kim et al. 2024, in the form
of Consistency Policy (Prasad et al. 2024, CTM-local).

Both sides are compared as clean estimates. The paper maps them to the clean end with the network, for the sake of
perceptual distances between images.
"""

import copy
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from diffpolicy.diffusion.objectives.denoising import EDM, Denoising, NoisyBatch
from diffpolicy.diffusion.objectives.levels import pseudo_huber
from diffpolicy.diffusion.objectives.objective import Conditioned, ConditionedNetwork, Objective, check_is_one_of
from diffpolicy.diffusion.reverse import Denoise
from diffpolicy.system.parts import WHOLE, Part, shared_draws
from diffpolicy.system.schema import Range


@dataclass
class ConsistencyTrajectoryConfig:
    """Settings of `ConsistencyTrajectory`.

    Attributes:
        denoising: settings of the denoiser that it starts from; None for the teacher's or, without a teacher, BASE.
        intervals: into how many intervals the levels are divided; the short way is one of them.
    """

    BASE: ClassVar[dict[str, Any]] = EDM
    name: str = "consistency_trajectory"
    denoising: Any = None
    intervals: Annotated[int, Range(2, 10_000)] = 80


class Crossing(NamedTuple):
    """A training batch: that of the denoiser, and how far down each step goes, [batch] from 0 to 1."""

    noisy: NoisyBatch
    depth: Tensor


class ConsistencyTrajectory(nn.Module, Objective):
    """The CTM objective and denoising, with equal weights; an `Objective`.

    Args:
        base: the schedule, the parameterization and the distribution of levels.
        intervals: see `ConsistencyTrajectoryConfig`.
    """

    sees_stop = True
    sampler = "flow_map"
    denoises = False
    teaching = "optional"

    def __init__(self, base: Denoising, intervals: int) -> None:
        super().__init__()
        self.base, self.schedule, self.condition_dropout = base, base.schedule, base.condition_dropout
        self.intervals = min(intervals, len(base.schedule) - 1)
        self.teacher: nn.Module | None = None

    def learn_from(self, teacher: nn.Module) -> None:
        """Follow the paths of `teacher`."""
        self.teacher = copy.deepcopy(teacher).requires_grad_(False)

    def check_sampler(self, settings: Any) -> None:
        """Raise ValueError unless it is a sampler whose steps the network has learned to make."""
        check_is_one_of(settings, ["flow_map", "consistency"], "consistency_trajectory")

    def draw(self, clean: Tensor, generator: torch.Generator, part: Part = WHOLE) -> Crossing:
        """Levels and noise, as for the denoiser, and depths; see `Objective.draw`."""
        noisy = self.base.draw(clean, generator, part)
        total, rows = shared_draws(part, len(clean))
        depth = torch.rand(self.base.draws, total, generator=generator, device=clean.device)
        return Crossing(noisy, depth[:, rows].flatten())

    def loss(
        self, network: ConditionedNetwork, batch: Crossing, step: int | Tensor = 0, counts: Tensor | None = None
    ) -> Tensor:
        """The mean distance to the step in two parts, plus that of the denoiser's estimate; see `Objective.loss`."""
        network, counts = self.base.repeated(network, counts)
        table, clean, noise = self.base.table, batch.noisy.clean, batch.noisy.noise
        width = (len(self.schedule) - 1) / self.intervals
        place = (batch.noisy.level / width).ceil().clamp(min=1.0)
        places = (place, place - 1.0, (batch.depth * place).floor())
        upper, lower, last = ((one * width).round().long() for one in places)
        now, between, end = table.at(upper), table.at(lower), table.at(last)
        x = now.noisy(clean, noise)
        with torch.no_grad():
            if self.teacher is None:
                x_between = between.noisy(clean, noise)
            else:
                x_between = now.step(x, now.estimate(network.of(self.teacher), x), between)
            onwards = between.step(x_between, between.estimate(network, x_between, end), end)
            target = now.clean_of_step(x, onwards, end)
        crossing = pseudo_huber(now.estimate(network, x, end) - target, counts)
        denoising = pseudo_huber(now.estimate(network, x, now) - clean, counts)
        return (crossing + denoising).mean()

    def denoiser(self, network: Conditioned) -> Denoise:
        """The clean estimate with which a step ends on the path."""
        return self.base.denoiser(network)
