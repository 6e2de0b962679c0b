"""Regression: the network predicts the plan from the observation alone, and may correct it once.

It is denoising at one level or two. At the last level nothing of the trajectory shows, and the network sees zeros, so
that the mean squared error is least for the mean of all demonstrated plans. A second regression may follow at a level
with little noise, alpha 1 and sigma `noise`, which corrects the first (the minimal iterative policy,
much-ado-about-noising, mip/losses.py).
"""

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor, nn

from diffpolicy.diffusion.objectives.denoising import Denoising, NoisyBatch
from diffpolicy.diffusion.objectives.objective import Conditioned, ConditionedNetwork, Objective, check_is_direct
from diffpolicy.diffusion.parameterization import CLEAN
from diffpolicy.diffusion.reverse import Denoise
from diffpolicy.diffusion.schedule import FloatArray, Levels
from diffpolicy.diffusion.schedules import from_nothing
from diffpolicy.diffusion.weighting import uniform
from diffpolicy.system.parts import WHOLE, Part, shared_draws
from diffpolicy.system.schema import OneOf, Range


@dataclass
class RegressionConfig:
    """Settings of `Regression` with one evaluation.

    Attributes:
        loss: mse, the mean squared error; or l1, the mean absolute error.
    """

    name: str = "regression"
    loss: Annotated[str, OneOf("mse", "l1")] = "mse"


@dataclass
class TwoStepRegressionConfig:
    """Settings of `Regression` with two evaluations.

    Attributes:
        loss: mse or l1.
        noise: standard deviation of the noise on the trajectory that the second evaluation corrects.
    """

    name: str = "two_step_regression"
    loss: Annotated[str, OneOf("mse", "l1")] = "mse"
    noise: Annotated[float, Range(above=0, below=1)] = 0.1


class Regression(nn.Module, Objective):
    """Regression of the plan in one evaluation or two; an `Objective`.

    Args:
        name: for messages.
        loss: mse or l1.
        noise: as in `TwoStepRegressionConfig`; None for one evaluation.
    """

    condition_dropout = 0.0
    denoises = False

    def __init__(self, name: str, loss: str, noise: float | None = None) -> None:
        super().__init__()
        self.name, self.is_squared = name, loss == "mse"
        self.schedule = from_nothing(0.0, *([] if noise is None else [noise]))
        self.base = Denoising(self.schedule, CLEAN, _weights)
        self.sampler = {"name": "direct", "steps": len(self.schedule)}

    def check_sampler(self, settings: Any) -> None:
        """Raise ValueError unless it is the sampler direct, from zeros, with at most as many steps as levels."""
        check_is_direct(settings, self.name, most_steps=len(self.schedule))

    def draw(self, clean: Tensor, generator: torch.Generator, part: Part = WHOLE) -> NoisyBatch:
        """Every window at every level, the last level first, and noise below it; see `Objective.draw`."""
        total, rows = shared_draws(part, len(clean))
        count = len(self.schedule)
        noise = torch.randn(count - 1, total, *clean.shape[1:], generator=generator, device=clean.device)
        noise = torch.cat([torch.zeros_like(clean)[None], noise[:, rows].to(clean)]).flatten(0, 1)
        level = torch.arange(count - 1, -1, -1, device=clean.device).repeat_interleave(len(clean))
        return NoisyBatch(clean.repeat(count, 1, 1), noise, level)

    def loss(
        self, network: ConditionedNetwork, batch: NoisyBatch, step: int | Tensor = 0, counts: Tensor | None = None
    ) -> Tensor:
        """The weighted error of the plan, the mean over levels; see `Objective.loss`."""
        copies = len(self.schedule)
        network = network.repeated(copies)
        level = self.base.table.at(batch.level)
        difference = level.estimate(network, level.noisy(batch.clean, batch.noise)) - batch.clean
        error = level.weight * (difference.square() if self.is_squared else difference.abs())
        return (error if counts is None else error * counts.repeat(copies, 1)[..., None]).mean()

    def denoiser(self, network: Conditioned) -> Denoise:
        """The plan; at a level with little noise, the corrected plan."""
        return self.base.denoiser(network)


def _weights(levels: Levels, out: FloatArray) -> FloatArray:
    """1 / (1 - noise)^2 at the last level and 1 / noise^2 below it, as published, divided by their mean.

    AdamW's steps do not depend on the common factor, but the clipping of the gradient does.
    """
    lower = levels.sigma[:-1]
    weights = np.append(1.0 / lower**2, 1.0 / (1.0 - lower.sum()) ** 2)
    return weights / (weights @ uniform(levels))
