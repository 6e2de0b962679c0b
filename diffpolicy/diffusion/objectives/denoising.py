"""The denoising objective: a noise schedule, a parameterization of the network's output, and weights of the levels."""

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor, nn

from diffpolicy.diffusion.correlation import correlated
from diffpolicy.diffusion.objectives.levels import LevelTable
from diffpolicy.diffusion.objectives.objective import Conditioned, ConditionedNetwork, Objective
from diffpolicy.diffusion.parameterization import Parameterization
from diffpolicy.diffusion.reverse import Denoise
from diffpolicy.diffusion.samplers.pyramid import PyramidConfig
from diffpolicy.diffusion.samplers.settings import MapSamplerConfig
from diffpolicy.diffusion.samplers.table import Row
from diffpolicy.diffusion.schedule import Schedule
from diffpolicy.diffusion.weighting import LevelDistribution, Weighting, elbo, simple, uniform
from diffpolicy.system.parts import WHOLE, Part, shared_draws
from diffpolicy.system.schema import Range

EDM = {  # settings of configs/diffusion/edm.yaml (Karras et al. 2022, table 1)
    "name": "denoising",
    "schedule": "karras",
    "num_levels": 1000,
    "parameterization": "edm",
    "level_distribution": "log_normal",
}
FLOW = {  # settings of configs/diffusion/flow.yaml (Lipman et al. 2023, Esser et al. 2024)
    "name": "denoising",
    "schedule": "flow",
    "num_levels": 1000,
    "parameterization": "flow",
    "level_distribution": "logit_normal",
}


@dataclass
class DenoisingConfig:
    """Settings of `Denoising`.

    Attributes:
        schedule, parameterization, weighting, level_distribution: choices from the tables in
            policy/objective_choices.py.
        num_levels: levels of the schedule.
        zero_terminal_snr: whether to rescale the schedule so that its last level holds no signal.
        condition_dropout: share of windows whose observations are replaced by a learned null condition.
        draws: levels and noises drawn for each window, which share its encoded observations. More of them make the most
            of an encoder that costs more than the denoising network, as encoders of images do.
        noise_correlation: correlation of the noise of neighbouring waypoints, 0 for white noise; see
            diffusion/correlation.py.
    """

    name: str = "denoising"
    schedule: Any = "cosine"
    num_levels: Annotated[int, Range(1, 10_000)] = 100
    zero_terminal_snr: bool = False
    parameterization: Any = "clean"
    weighting: Any = "simple"
    level_distribution: Any = "uniform"
    condition_dropout: Annotated[float, Range(least=0, below=1)] = 0.0
    draws: Annotated[int, Range(1, 1024)] = 1
    noise_correlation: Annotated[float, Range(least=0, below=1)] = 0.0


@dataclass(frozen=True)
class NoisyBatch:
    """A training batch, with all windows once for each draw: the first draw of all, then the second of all.

    Attributes:
        clean: trajectories [draws * batch, horizon, action].
        noise: the noise to add, shaped like clean.
        level: indices of levels [draws * batch].
    """

    clean: Tensor
    noise: Tensor
    level: Tensor


class Denoising(nn.Module, Objective):
    """Predict the target of `parameterization` at random levels of `schedule` (Ho et al. 2020, eq. 14); an `Objective`.

    Args:
        weighting: weight of the squared error at each level.
        levels: probability of drawing each level.
        condition_dropout: see `Objective`.
        draws: levels and noises for each window.

    Raises:
        ValueError: the parts do not fit together, or the schedule does not end in noise.
    """

    def __init__(
        self,
        schedule: Schedule,
        parameterization: Parameterization,
        weighting: Weighting = simple,
        levels: LevelDistribution = uniform,
        condition_dropout: float = 0.0,
        draws: int = 1,
    ) -> None:
        super().__init__()
        if not 0.0 <= condition_dropout < 1.0:
            raise ValueError(f"diffusion: condition_dropout {condition_dropout} must be at least 0 and below 1")
        schedule.check()
        if parameterization.needs_signal and not (schedule.levels.alpha > 0).all():
            raise ValueError(
                "objective: the schedule has a level with alpha 0, where noise and score say nothing about the clean "
                "trajectory; use the parameterization clean, v, flow or edm"
            )
        if weighting is elbo and levels is not uniform:
            raise ValueError("objective: the weighting elbo is the bound's only if level_distribution is uniform")
        self.schedule, self.parameterization = schedule, parameterization
        self.weighting, self.levels, self.condition_dropout = weighting, levels, condition_dropout
        self.draws = draws
        self.table = self._table()

    def check_sampler(self, settings: Any) -> None:
        """Raise ValueError if the sampler is not for denoisers."""
        if isinstance(settings, MapSamplerConfig):
            raise ValueError(
                f"sampler: {settings.name} is for policies that are trained for it, and this one denoises; give "
                "sampler=ddim"
            )
        if isinstance(settings, PyramidConfig):
            raise ValueError(
                "sampler: pyramid needs a policy trained with a level for each waypoint, diffusion=diffusion_forcing; "
                "give sampler=ddim"
            )
        if getattr(settings, "variance", None) == "learned":
            raise ValueError(
                "sampler: variance learned needs a policy trained with diffusion=learned_variance; give "
                "sampler.variance=posterior"
            )

    def draw(self, clean: Tensor, generator: torch.Generator, part: Part = WHOLE) -> NoisyBatch:
        """Draw levels and noise for `clean` [batch, horizon, action]; see `Objective.draw`."""
        total, rows = shared_draws(part, len(clean))
        level = self.draw_levels(self.draws * total, generator).view(self.draws, total)
        noise = torch.randn(self.draws, total, *clean.shape[1:], generator=generator, device=clean.device)
        noise = correlated(noise, self.schedule.correlation)
        clean = clean.expand(self.draws, *clean.shape).flatten(0, 1)
        return NoisyBatch(clean, noise[:, rows].flatten(0, 1), level[:, rows].flatten())

    def draw_levels(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw indices of levels, int64 [count]."""
        share = self.table.columns.share
        chance = torch.rand(count, generator=generator, device=share.device)
        return torch.searchsorted(share[:-1].contiguous(), chance, right=True)

    def loss(
        self,
        network: ConditionedNetwork,
        batch: NoisyBatch,
        step: int | Tensor = 0,
        counts: Tensor | None = None,
    ) -> Tensor:
        """The weighted mean squared error between the network's output and its target, a scalar; see `Objective`."""
        network, counts = self.repeated(network, counts)
        level = self.table.at(batch.level)
        output = level.output(network, level.noisy(batch.clean, batch.noise))
        target = level.on_clean * batch.clean + level.on_noise * batch.noise
        error = level.weight * (output - target).square()
        return (error if counts is None else error * counts[..., None]).mean()

    def repeated(self, network: ConditionedNetwork, counts: Tensor | None) -> tuple[ConditionedNetwork, Tensor | None]:
        """The network and the counts for a batch from `draw`, which has every window `draws` times."""
        if self.draws == 1:
            return network, counts
        return network.repeated(self.draws), None if counts is None else counts.repeat(self.draws, 1)

    def denoiser(self, network: Conditioned) -> Denoise:
        """A function of x [batch, horizon, action] and a row that returns the clean estimate, shaped like x."""

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
        output = np.array([self.parameterization.clean_from_output(*pair) for pair in pairs])
        weight, share = self.weighting(levels, output.T[1]), np.cumsum(self.levels(levels))
        of_levels = levels.alpha, levels.sigma, levels.time, levels.input_scale
        return LevelTable.of(*of_levels, *target.T, weight, share, *output.T)
