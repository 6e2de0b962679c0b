"""Reflow: a denoiser trained on pairs of noise and the trajectory that the teacher makes of it (Liu et al. 2023).

The paths of the new network between such pairs cross less than those between random ones, so that they are straighter
and fewer steps follow them; with flow matching and one repetition this is the 2-rectified flow. The teacher's
trajectories are made anew for every batch, given the batch's observations. Trained at pure noise alone, one step learns
the teacher's whole chain (Luhman & Luhman 2021; Liu et al. 2023, section 2.2).
"""

import copy
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from diffpolicy.diffusion.objectives.denoising import FLOW, Denoising, NoisyBatch
from diffpolicy.diffusion.objectives.objective import Conditioned, ConditionedNetwork, Objective
from diffpolicy.diffusion.reverse import Denoise, reverse
from diffpolicy.diffusion.samplers.ancestral import ddim
from diffpolicy.diffusion.samplers.table import Number, Row
from diffpolicy.diffusion.spacing import trailing
from diffpolicy.system.parts import WHOLE, Part, shared_draws
from diffpolicy.system.schema import Range


@dataclass
class ReflowConfig:
    """Settings of `Reflow`.

    Attributes:
        denoising: settings of the denoiser that it starts from; None for the teacher's.
        teacher_steps: DDIM steps in which the teacher makes a trajectory.
        at_noise: share of the windows whose level is pure noise; the levels of the others are drawn as the denoiser's.
    """

    BASE: ClassVar[dict[str, Any]] = FLOW
    name: str = "reflow"
    denoising: Any = None
    teacher_steps: Annotated[int, Range(1, 1000)] = 10
    at_noise: Annotated[float, Range(least=0, most=1)] = 0.0


class Reflow(nn.Module, Objective):
    """Denoising with the teacher's pairs of noise and trajectory; an `Objective`.

    Args:
        base: how the network is trained on the pairs.
        teacher_steps, at_noise: see `ReflowConfig`.

    Raises:
        ValueError: there are more steps than levels.
    """

    teaching = "required"

    def __init__(self, base: Denoising, teacher_steps: int, at_noise: float = 0.0) -> None:
        super().__init__()
        self.at_noise = at_noise
        self.base, self.schedule, self.condition_dropout = base, base.schedule, base.condition_dropout
        self.steps = ddim(trailing(base.schedule, teacher_steps))
        self.sampler = {"name": "ddim", "steps": 1}
        self.teacher: Any = None

    def learn_from(self, teacher: nn.Module) -> None:
        """Make the trajectories with `teacher`."""
        self.teacher = copy.deepcopy(teacher).requires_grad_(False)

    def check_sampler(self, settings: Any) -> None:
        """Raise ValueError if the sampler is not for denoisers."""
        self.base.check_sampler(settings)

    def draw(self, clean: Tensor, generator: torch.Generator, part: Part = WHOLE) -> NoisyBatch:
        """Levels and noise, as for the denoiser but for the share `at_noise`; see `Objective.draw`."""
        batch = self.base.draw(clean, generator, part)
        total, rows = shared_draws(part, len(clean))
        chance = torch.rand(self.base.draws, total, generator=generator, device=clean.device)[:, rows].flatten()
        return replace(batch, level=batch.level.masked_fill(chance < self.at_noise, len(self.schedule) - 1))

    def loss(
        self, network: ConditionedNetwork, batch: NoisyBatch, step: int | Tensor = 0, counts: Tensor | None = None
    ) -> Tensor:
        """The denoiser's loss, with the teacher's trajectories; see `Objective.loss`."""
        repeated, _ = self.base.repeated(network, None)
        return self.base.loss(network, replace(batch, clean=self.coupled(repeated, batch.noise)), step, counts)

    @torch.no_grad()
    def coupled(self, network: ConditionedNetwork, noise: Tensor) -> Tensor:
        """The teacher's trajectories [B, H, A] from this noise."""
        teacher = network.of(self.teacher)

        def at(x: Tensor, time: Number, stop: Number | None = None) -> Tensor:
            return teacher(x, x.new_full((len(x),), time))

        noises = noise.expand(len(self.steps) + 1, *noise.shape)  # DDIM uses the first alone
        return reverse(self.base.denoiser(at), self.steps, noises, _unchanged).clean

    def denoiser(self, network: Conditioned) -> Denoise:
        """The clean estimate; it may be sampled as any denoiser."""
        return self.base.denoiser(network)


def _unchanged(clean: Tensor, row: Row, step: int) -> Tensor:
    return clean
