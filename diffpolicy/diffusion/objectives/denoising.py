"""The training objective: a schedule, what the network predicts at its levels, and how much each level counts."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from diffpolicy.diffusion.parameterization import Parameterization
from diffpolicy.diffusion.reverse import Denoise
from diffpolicy.diffusion.samplers.table import Row
from diffpolicy.diffusion.schedule import Schedule
from diffpolicy.diffusion.weighting import LevelDistribution, Weighting, elbo, simple, uniform

Part = tuple[int, int]
"""(index, count): a batch is one of `count` equal parts of a larger one, for all of which randomness is drawn."""

WHOLE: Part = (0, 1)


class Network(Protocol):
    """x [batch, horizon, action], time [batch], condition [batch, features] -> output, shaped like x."""

    def __call__(self, x: Tensor, time: Tensor, condition: Tensor) -> Tensor: ...


Conditioned = Callable[[Tensor, float], Tensor]
"""A network at one condition: x [batch, horizon, action], time of the whole batch -> output, shaped like x."""


@dataclass(frozen=True)
class Objective:
    """Predict `parameterization`'s target at the levels of `schedule` (Ho et al. 2020, eq. 14).

    Attributes:
        weighting: of the squared error at each level.
        levels: how often each level is drawn.

    Raises:
        ValueError: what `check` finds.
    """

    schedule: Schedule
    parameterization: Parameterization
    weighting: Weighting = simple
    levels: LevelDistribution = uniform

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Raise ValueError where the parts do not fit each other, or the schedule does not end in noise."""
        self.schedule.check()
        if self.parameterization.needs_signal and not (self.schedule.levels.alpha > 0).all():
            raise ValueError(
                "objective: the schedule has a level with alpha 0, where noise and score tell nothing of the clean "
                "trajectory; use the parameterization clean, v, flow or edm"
            )
        if self.weighting is elbo and self.levels is not uniform:
            raise ValueError("objective: the weighting elbo is the bound's only if level_distribution is uniform")

    def table(self) -> Tensor:
        """What training needs of every level, float32 [levels, 8].

        Columns: alpha, sigma, time, input_scale, the target's pair, weight, and the share of draws up to this level.
        """
        levels = self.schedule.levels
        pairs = list(zip(levels.alpha.tolist(), levels.sigma.tolist(), strict=True))
        target = np.array([self.parameterization.target(*pair) for pair in pairs])
        out = np.array([self.parameterization.clean_from_output(*pair)[1] for pair in pairs])
        weight, share = self.weighting(levels, out), np.cumsum(self.levels(levels))
        columns = (levels.alpha, levels.sigma, levels.time, levels.input_scale, *target.T, weight, share)
        return torch.tensor(np.stack(columns, axis=-1).tolist())

    @staticmethod
    def draw_levels(table: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Indices of levels [count], int64."""
        chance = torch.rand(count, generator=generator, device=table.device)
        return torch.searchsorted(table[:-1, -1].contiguous(), chance, right=True)

    @staticmethod
    def draw(
        table: Tensor, clean: Tensor, generator: torch.Generator, part: Part = WHOLE
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Levels [batch], noise shaped like clean, and chances in [0, 1) that decide on dropout [batch]."""
        index, count = part
        rows, total = slice(index * len(clean), (index + 1) * len(clean)), count * len(clean)
        level = Objective.draw_levels(table, total, generator)
        noise = torch.randn(total, *clean.shape[1:], generator=generator, device=clean.device)
        chance = torch.rand(total, generator=generator, device=clean.device)
        return level[rows], noise[rows], chance[rows]

    @staticmethod
    def loss(network: Network, table: Tensor, clean: Tensor, noise: Tensor, level: Tensor, condition: Tensor) -> Tensor:
        """Weighted mean squared error of the network's output against its target, a scalar.

        Args:
            network: under training.
            table: `table()`, on the device of the data.
            clean: normalised trajectories [batch, horizon, action].
            noise: standard normal, shaped like clean.
            level: indices into the schedule [batch].
            condition: encoded observations [batch, features].
        """
        alpha, sigma, time, input_scale, on_clean, on_noise, weight, _ = table[level, :, None, None].unbind(dim=1)
        noisy = alpha * clean + sigma * noise
        output = network(input_scale * noisy, time.flatten(), condition)
        return (weight * (output - (on_clean * clean + on_noise * noise)).square()).mean()

    def denoiser(self, network: Conditioned) -> Denoise:
        """The clean estimate [batch, horizon, action] of a noisy x at a row's level."""

        def denoise(x: Tensor, row: Row) -> Tensor:
            skip, out = self.parameterization.clean_from_output(row.alpha, row.sigma)
            output = network(x if row.input_scale == 1.0 else row.input_scale * x, row.time)
            scaled = output if out == 1.0 else out * output
            return scaled if skip == 0.0 else torch.add(scaled, x, alpha=skip)

        return denoise
