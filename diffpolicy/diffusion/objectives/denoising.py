"""Denoising: a schedule, what the network predicts at its levels, and how much each level counts."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from diffpolicy.diffusion.objectives.objective import WHOLE, Conditioned, ConditionedNetwork, Part, shared_draws
from diffpolicy.diffusion.parameterization import Parameterization
from diffpolicy.diffusion.reverse import Denoise
from diffpolicy.diffusion.samplers.table import Row
from diffpolicy.diffusion.schedule import Schedule
from diffpolicy.diffusion.weighting import LevelDistribution, Weighting, elbo, simple, uniform


@dataclass
class DenoisingConfig:
    """Noise schedule, parameterization, and how much each level counts; each a choice of its table.

    Attributes:
        condition_dropout: share of windows whose observations a learned null condition replaces.
    """

    name: str = "denoising"
    schedule: Any = "cosine"
    num_levels: int = 100
    zero_terminal_snr: bool = False
    parameterization: Any = "clean"
    weighting: Any = "simple"
    level_distribution: Any = "uniform"
    condition_dropout: float = 0.0


class LevelColumns(NamedTuple):
    """What training needs of levels: a column each.

    Attributes:
        on_clean, on_noise: the target is on_clean * clean + on_noise * noise.
        weight: of the squared error.
        share: of the draws that fall on this level or one before.
    """

    alpha: Tensor
    sigma: Tensor
    time: Tensor
    input_scale: Tensor
    on_clean: Tensor
    on_noise: Tensor
    weight: Tensor
    share: Tensor


class LevelTable(nn.Module):
    """The columns of all levels, float32, in one tensor [levels, columns], from which a batch takes rows at once."""

    values: Tensor

    def __init__(self, *columns: Any) -> None:
        super().__init__()
        values = torch.tensor(np.stack(columns, axis=-1).tolist())
        self.register_buffer("values", values, persistent=False)

    @property
    def columns(self) -> LevelColumns:
        """[levels] each."""
        return LevelColumns(*self.values.unbind(dim=1))

    def at(self, level: Tensor) -> LevelColumns:
        """Of these levels [batch], [batch, 1, 1] each."""
        return LevelColumns(*self.values[level, :, None, None].unbind(dim=1))


@dataclass(frozen=True)
class NoisyBatch:
    """Trajectories [batch, horizon, action], the noise to be added, shaped like them, and the levels [batch]."""

    clean: Tensor
    noise: Tensor
    level: Tensor


class Denoising(nn.Module):
    """Predict `parameterization`'s target at the levels of `schedule` (Ho et al. 2020, eq. 14); an `Objective`.

    Args:
        weighting: of the squared error at each level.
        levels: how often each level is drawn.
        condition_dropout: see `Objective`.

    Raises:
        ValueError: parts that do not fit each other, or a schedule that does not end in noise.
    """

    def __init__(
        self,
        schedule: Schedule,
        parameterization: Parameterization,
        weighting: Weighting = simple,
        levels: LevelDistribution = uniform,
        condition_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0.0 <= condition_dropout < 1.0:
            raise ValueError(f"diffusion: condition_dropout {condition_dropout} must be at least 0 and below 1")
        schedule.check()
        if parameterization.needs_signal and not (schedule.levels.alpha > 0).all():
            raise ValueError(
                "objective: the schedule has a level with alpha 0, where noise and score tell nothing of the clean "
                "trajectory; use the parameterization clean, v, flow or edm"
            )
        if weighting is elbo and levels is not uniform:
            raise ValueError("objective: the weighting elbo is the bound's only if level_distribution is uniform")
        self.schedule, self.parameterization = schedule, parameterization
        self.weighting, self.levels, self.condition_dropout = weighting, levels, condition_dropout
        self.table = self._table()

    def attach(self, network: nn.Module) -> None:
        """There is no target to be copied."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """None: the network is all that is trained."""
        return []

    def draw(self, clean: Tensor, generator: torch.Generator, part: Part = WHOLE) -> NoisyBatch:
        """Levels and noise for `clean` [batch, horizon, action]."""
        total, rows = shared_draws(part, len(clean))
        level = self.draw_levels(total, generator)
        noise = torch.randn(total, *clean.shape[1:], generator=generator, device=clean.device)
        return NoisyBatch(clean, noise[rows], level[rows])

    def draw_levels(self, count: int, generator: torch.Generator) -> Tensor:
        """Indices of levels [count], int64."""
        share = self.table.columns.share
        chance = torch.rand(count, generator=generator, device=share.device)
        return torch.searchsorted(share[:-1].contiguous(), chance, right=True)

    def loss(self, network: ConditionedNetwork, batch: NoisyBatch, step: int = 0) -> Tensor:
        """Weighted mean squared error of the network's output against its target, a scalar."""
        level = self.table.at(batch.level)
        noisy = level.alpha * batch.clean + level.sigma * batch.noise
        output = network(level.input_scale * noisy, level.time.flatten())
        target = level.on_clean * batch.clean + level.on_noise * batch.noise
        return (level.weight * (output - target).square()).mean()

    def stepped(self, network: nn.Module, step: int) -> None:
        """Nothing follows the network."""

    def denoiser(self, network: Conditioned) -> Denoise:
        """The clean estimate [batch, horizon, action] of a noisy x at a row's level."""

        def denoise(x: Tensor, row: Row) -> Tensor:
            skip, out = self.parameterization.clean_from_output(row.alpha, row.sigma)
            times = (row.time,) if row.stop is None else (row.time, row.stop)
            if not row.is_uniform:
                return out * network(row.input_scale * x, *times) + skip * x
            output = network(x if row.input_scale == 1.0 else row.input_scale * x, *times)
            scaled = output if out == 1.0 else out * output
            return scaled if skip == 0.0 else torch.add(scaled, x, alpha=skip)

        return denoise

    def _table(self) -> LevelTable:
        levels = self.schedule.levels
        pairs = list(zip(levels.alpha.tolist(), levels.sigma.tolist(), strict=True))
        target = np.array([self.parameterization.target(*pair) for pair in pairs])
        out = np.array([self.parameterization.clean_from_output(*pair)[1] for pair in pairs])
        weight, share = self.weighting(levels, out), np.cumsum(self.levels(levels))
        return LevelTable(levels.alpha, levels.sigma, levels.time, levels.input_scale, *target.T, weight, share)
