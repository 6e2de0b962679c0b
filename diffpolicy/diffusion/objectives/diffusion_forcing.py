"""Diffusion forcing: every waypoint of a training window has a level of its own (Chen et al. 2024, algorithm 1).

One network then denoises plans whose waypoints are at any levels: all at one, as every sampler does, or near ones ahead
of far ones, as the sampler `pyramid` does.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diffpolicy.diffusion.correlation import correlated
from diffpolicy.diffusion.objectives.denoising import Denoising, DenoisingConfig, NoisyBatch
from diffpolicy.diffusion.objectives.objective import Conditioned, ConditionedNetwork, Objective
from diffpolicy.diffusion.reverse import Denoise
from diffpolicy.diffusion.samplers.pyramid import PyramidConfig
from diffpolicy.system.parts import WHOLE, Part, shared_draws


@dataclass
class DiffusionForcingConfig(DenoisingConfig):
    """Settings of `DiffusionForcing`: those of the denoiser."""

    name: str = "diffusion_forcing"


class DiffusionForcing(nn.Module, Objective):
    """Denoising with an independent level for each waypoint; an `Objective` for backbones that take such times.

    Args:
        base: the schedule, the parameterization, the weights and the distribution of levels.
    """

    sees_waypoint_levels = True

    def __init__(self, base: Denoising) -> None:
        super().__init__()
        self.base, self.schedule, self.condition_dropout = base, base.schedule, base.condition_dropout

    def check_sampler(self, settings: Any) -> None:
        """Raise ValueError if the sampler is not for denoisers."""
        if not isinstance(settings, PyramidConfig):
            self.base.check_sampler(settings)

    def draw(self, clean: Tensor, generator: torch.Generator, part: Part = WHOLE) -> NoisyBatch:
        """Draw levels [batch, horizon] and noise for `clean` [batch, horizon, action]; see `Objective.draw`."""
        draws, horizon = self.base.draws, clean.shape[1]
        total, rows = shared_draws(part, len(clean))
        level = self.base.draw_levels(draws * total * horizon, generator).view(draws, total, horizon)
        noise = torch.randn(draws, total, *clean.shape[1:], generator=generator, device=clean.device)
        noise = correlated(noise, self.schedule.correlation)
        clean = clean.expand(draws, *clean.shape).flatten(0, 1)
        return NoisyBatch(clean, noise[:, rows].flatten(0, 1), level[:, rows].flatten(0, 1))

    def loss(
        self, network: ConditionedNetwork, batch: NoisyBatch, step: int | Tensor = 0, counts: Tensor | None = None
    ) -> Tensor:
        """The weighted mean squared error of the network's output, a scalar; see `Objective.loss`."""
        network, counts = self.base.repeated(network, counts)
        level = self.base.table.of_waypoints(batch.level)
        x = level.noisy(batch.clean, batch.noise)
        output = network(level.input_scale * x, level.time.squeeze(-1))
        target = level.on_clean * batch.clean + level.on_noise * batch.noise
        error = level.weight * (output - target).square()
        return (error if counts is None else error * counts[..., None]).mean()

    def denoiser(self, network: Conditioned) -> Denoise:
        """The clean estimate of waypoints at one level or at their own."""
        return self.base.denoiser(network)
