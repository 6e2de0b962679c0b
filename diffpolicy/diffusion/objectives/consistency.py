"""Consistency training and distillation: one evaluation maps any noisy trajectory to the clean end of its path.

The network's clean estimate at a level is compared with its own at the next lower level, on the same path. With a
teacher, the path is the teacher's probability-flow ODE (consistency distillation); without one, it is the line through
the same clean trajectory and noise, which is right on average (consistency training). Song et al. 2023; the loss, the
levels and the growing number of intervals are those of Song & Dhariwal 2024.

The lowest level's target is the trajectory itself, so that no parameterization has to enforce the boundary condition,
and a network starts as the teacher that it is copied from.
"""

import copy
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from diffpolicy.diffusion.objectives.denoising import EDM, Denoising, NoisyBatch
from diffpolicy.diffusion.objectives.levels import pseudo_huber
from diffpolicy.diffusion.objectives.objective import Conditioned, ConditionedNetwork, Objective, check_is_one_of
from diffpolicy.diffusion.reverse import Denoise
from diffpolicy.system.parts import WHOLE, Part
from diffpolicy.system.schema import Range


@dataclass
class ConsistencyConfig:
    """Settings of `Consistency`.

    Attributes:
        denoising: settings of the denoiser that it starts from; None for the teacher's or, without a teacher, BASE.
        first_intervals, last_intervals: into how many intervals the levels are divided at first and at last.
        double_every: optimiser steps after which the number of intervals doubles.
    """

    BASE: ClassVar[dict[str, Any]] = {**EDM, "level_distribution": {"name": "log_normal", "mean": -1.1, "std": 2.0}}
    name: str = "consistency"
    denoising: Any = None
    first_intervals: Annotated[int, Range(1, 10_000)] = 10
    last_intervals: Annotated[int, Range(1, 10_000)] = 1280
    double_every: Annotated[int, Range(1, 1_000_000_000)] = 600


class Consistency(nn.Module, Objective):
    """Consistency training or, with a teacher, distillation; an `Objective`.

    Args:
        base: the schedule, the parameterization and the distribution of levels.
        first_intervals, last_intervals, double_every: see `ConsistencyConfig`.

    Raises:
        ValueError: there are fewer intervals at last than at first.
    """

    sampler = "consistency"
    denoises = False
    teaching = "optional"

    def __init__(self, base: Denoising, first_intervals: int, last_intervals: int, double_every: int) -> None:
        super().__init__()
        if last_intervals < first_intervals:
            raise ValueError(
                f"diffusion: last_intervals {last_intervals} must be at least first_intervals {first_intervals}"
            )
        self.base, self.schedule, self.condition_dropout = base, base.schedule, base.condition_dropout
        most = len(base.schedule) - 1
        self.first, self.last, self.every = min(first_intervals, most), min(last_intervals, most), double_every
        self.teacher: nn.Module | None = None

    def learn_from(self, teacher: nn.Module) -> None:
        """Follow the paths of `teacher`."""
        self.teacher = copy.deepcopy(teacher).requires_grad_(False)

    def check_sampler(self, settings: Any) -> None:
        """Raise ValueError unless it is the sampler consistency."""
        check_is_one_of(settings, ["consistency"], "consistency")

    def draw(self, clean: Tensor, generator: torch.Generator, part: Part = WHOLE) -> NoisyBatch:
        """Levels and noise, as for the denoiser; see `Objective.draw`."""
        return self.base.draw(clean, generator, part)

    def loss(
        self, network: ConditionedNetwork, batch: NoisyBatch, step: int | Tensor = 0, counts: Tensor | None = None
    ) -> Tensor:
        """The mean distance between the estimates at both ends of an interval; see `Objective.loss`."""
        network, counts = self.base.repeated(network, counts)
        upper, lower = self.interval(batch.level, step)
        now, after = self.base.table.at(upper), self.base.table.at(lower)
        x = now.noisy(batch.clean, batch.noise)
        with torch.no_grad():
            x_after = after.noisy(batch.clean, batch.noise)
            if self.teacher is not None:
                x_after = now.step(x, now.estimate(network.of(self.teacher), x), after)
            target = torch.where(lower[:, None, None] == 0, x_after / after.alpha, after.estimate(network, x_after))
        width = torch.atan2(now.sigma, now.alpha) - torch.atan2(after.sigma, after.alpha)
        return (pseudo_huber(now.estimate(network, x) - target, counts) / width).mean()

    def interval(self, level: Tensor, step: int | Tensor) -> tuple[Tensor, Tensor]:
        """The indices of the upper and lower level of the interval that `level` [B] falls into at optimiser `step`."""
        doublings = torch.as_tensor(step, device=level.device) // self.every
        count = (self.first * 2.0 ** doublings.clamp(max=30)).clamp(max=self.last)
        width = (len(self.schedule) - 1) / count
        place = (level / width).ceil().clamp(min=1.0)
        return (place * width).round().long(), ((place - 1.0) * width).round().long()

    def denoiser(self, network: Conditioned) -> Denoise:
        """The clean end of the path through x."""
        return self.base.denoiser(network)
