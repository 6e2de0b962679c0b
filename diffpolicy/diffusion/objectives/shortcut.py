"""Shortcut models: one network takes large steps, trained on its own smaller ones, without a teacher or derivatives.

The network sees the level and where the step ends. For most windows both are the same, and it learns to denoise. For
the others, one step is trained to end where two of its own steps end, each over half of the levels in between
(Frans et al. 2024, section 3; there the steps are powers of two, here any number of levels).
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from diffpolicy.diffusion.objectives.denoising import FLOW, Denoising, NoisyBatch
from diffpolicy.diffusion.objectives.levels import LevelColumns
from diffpolicy.diffusion.objectives.objective import Conditioned, ConditionedNetwork, Objective, check_is_one_of
from diffpolicy.diffusion.reverse import Denoise
from diffpolicy.system.parts import WHOLE, Part, shared_draws
from diffpolicy.system.schema import Range


@dataclass
class ShortcutConfig:
    """Settings of `Shortcut`.

    Attributes:
        denoising: settings of the denoiser that it starts from; None for the teacher's or, without a teacher, BASE.
        share: of the windows, how many train a large step.
    """

    BASE: ClassVar[dict[str, Any]] = FLOW
    name: str = "shortcut"
    denoising: Any = None
    share: Annotated[float, Range(above=0, below=1)] = 0.25


class Steps(NamedTuple):
    """A training batch: that of the denoiser, which windows train a large step [batch], and its depth [batch]."""

    noisy: NoisyBatch
    is_large: Tensor
    depth: Tensor


class Shortcut(nn.Module, Objective):
    """Denoising, and steps that equal two of half the size; an `Objective`. A teacher only gives the first weights.

    Args:
        base: the schedule, the parameterization, the weights and the distribution of levels.
        share: see `ShortcutConfig`.
    """

    sees_stop = True
    sampler = "flow_map"
    denoises = False
    teaching = "optional"

    def __init__(self, base: Denoising, share: float) -> None:
        super().__init__()
        self.base, self.schedule, self.condition_dropout = base, base.schedule, base.condition_dropout
        self.share = share

    def check_sampler(self, settings: Any) -> None:
        """Raise ValueError unless it is a sampler whose steps the network has learned to make."""
        check_is_one_of(settings, ["flow_map", "consistency"], "shortcut")

    def draw(self, clean: Tensor, generator: torch.Generator, part: Part = WHOLE) -> Steps:
        """Levels and noise, as for the denoiser, and large steps; see `Objective.draw`."""
        noisy = self.base.draw(clean, generator, part)
        total, rows = shared_draws(part, len(clean))
        chance = torch.rand(2, self.base.draws, total, generator=generator, device=clean.device)
        large, depth = chance[:, :, rows].flatten(1)
        return Steps(noisy, large < self.share, depth)

    def loss(
        self, network: ConditionedNetwork, batch: Steps, step: int | Tensor = 0, counts: Tensor | None = None
    ) -> Tensor:
        """The weighted mean squared error of the network's output, a scalar; see `Objective.loss`."""
        network, counts = self.base.repeated(network, counts)
        upper, table = batch.noisy.level, self.base.table
        last = (batch.depth * (upper - 1)).floor().clamp(min=0.0).long()
        is_large = batch.is_large & (upper - last >= 2)  # a level between them
        now = table.at(upper)
        x = now.noisy(batch.noisy.clean, batch.noisy.noise)
        target = now.on_clean * batch.noisy.clean + now.on_noise * batch.noisy.noise
        of_step = self._output_of_halves(network, x, now, table.at((upper + last) // 2), table.at(last))
        target = torch.where(is_large[:, None, None], of_step, target)
        output = now.output(network, x, table.at(torch.where(is_large, last, upper)))
        error = now.weight * (output - target).square()
        return (error if counts is None else error * counts[..., None]).mean()

    @torch.no_grad()
    def _output_of_halves(
        self, network: ConditionedNetwork, x: Tensor, now: LevelColumns, middle: LevelColumns, end: LevelColumns
    ) -> Tensor:
        """The output with which one step ends where two steps of the network end."""
        x_middle = now.step(x, now.estimate(network, x, middle), middle)
        x_end = middle.step(x_middle, middle.estimate(network, x_middle, end), end)
        return now.output_of_clean(now.clean_of_step(x, x_end, end), x)

    def denoiser(self, network: Conditioned) -> Denoise:
        """The clean estimate with which a step ends on the path."""
        return self.base.denoiser(network)
