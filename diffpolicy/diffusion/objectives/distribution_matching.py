"""Distribution matching: a deterministic one-step generator whose plans the teacher takes for likely ones.

The generator's plan is noised to a random level; the gradient moves it towards the teacher's clean estimate there. This
is the difference of the scores of the teacher and of the generator's distribution, which is a point given the
observation, so that no second network has to learn its score (OneDP-D, Wang et al. 2024, eq. 8).
"""

import copy
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from diffpolicy.diffusion.objectives.denoising import EDM, Denoising, NoisyBatch
from diffpolicy.diffusion.objectives.objective import Conditioned, ConditionedNetwork, Objective, check_is_direct
from diffpolicy.diffusion.reverse import Denoise
from diffpolicy.system.parts import WHOLE, Part
from diffpolicy.system.schema import Range


@dataclass
class DistributionMatchingConfig:
    """Settings of `DistributionMatching`.

    Attributes:
        denoising: settings of the denoiser that it starts from; None for the teacher's.
        lowest, highest: the levels at which the teacher judges plans, as shares of all levels.
    """

    BASE: ClassVar[dict[str, Any]] = EDM
    name: str = "distribution_matching"
    denoising: Any = None
    lowest: Annotated[float, Range(least=0, below=1)] = 0.02
    highest: Annotated[float, Range(above=0, most=1)] = 0.95


class DistributionMatching(nn.Module, Objective):
    """The deterministic generator of OneDP; an `Objective`.

    The plan is the clean estimate of a zero trajectory at the last level, from where no noise has to be drawn.

    Args:
        base: the schedule and the parameterization.
        lowest, highest: see `DistributionMatchingConfig`.

    Raises:
        ValueError: `lowest` is not below `highest`.
    """

    sampler = "direct"
    denoises = False
    teaching = "required"

    def __init__(self, base: Denoising, lowest: float, highest: float) -> None:
        super().__init__()
        if not lowest < highest:
            raise ValueError(f"diffusion: lowest {lowest} must be below highest {highest}")
        self.base, self.schedule, self.condition_dropout = base, base.schedule, base.condition_dropout
        most = len(base.schedule) - 1
        self.range = round(lowest * most), max(round(lowest * most) + 1, round(highest * most))
        self.teacher: Any = None

    def learn_from(self, teacher: nn.Module) -> None:
        """Let `teacher` judge the plans."""
        self.teacher = copy.deepcopy(teacher).requires_grad_(False)

    def check_sampler(self, settings: Any) -> None:
        """Raise ValueError unless it is the sampler direct with one step."""
        check_is_direct(settings, "distribution_matching")

    def draw(self, clean: Tensor, generator: torch.Generator, part: Part = WHOLE) -> NoisyBatch:
        """Noise, as for the denoiser, and levels from the whole range alike; see `Objective.draw`."""
        batch = self.base.draw(clean, generator, part)
        share = (batch.level + 0.5) / len(self.schedule)
        low, high = self.range
        return NoisyBatch(batch.clean, batch.noise, (low + share * (high - low)).long())

    def loss(
        self, network: ConditionedNetwork, batch: NoisyBatch, step: int | Tensor = 0, counts: Tensor | None = None
    ) -> Tensor:
        """Half the squared distance to the teacher's estimate, whose gradient is that of the divergence."""
        network, counts = self.base.repeated(network, counts)
        table = self.base.table
        last = table.at(torch.full_like(batch.level, len(table) - 1))
        plan = last.estimate(network, torch.zeros_like(batch.clean))
        level = table.at(batch.level)
        with torch.no_grad():
            judged = level.estimate(network.of(self.teacher), level.noisy(plan, batch.noise))
        error = 0.5 * level.alpha * (plan - judged).square()
        return (error if counts is None else error * counts[..., None]).mean()

    def denoiser(self, network: Conditioned) -> Denoise:
        """The plan, as the clean estimate of a zero trajectory."""
        return self.base.denoiser(network)
