"""Progressive distillation: a student whose one step does what two steps of its teacher do, again and again.

The first student of N steps learns from 2 N DDIM steps of the teacher; then it is the teacher of a student of N / 2
steps, and so on (Salimans & Ho 2022, algorithm 2). The weight of a level is the denoiser's, on the network's output.
"""

import copy
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from diffpolicy.diffusion.correlation import correlated
from diffpolicy.diffusion.objectives.denoising import EDM, Denoising
from diffpolicy.diffusion.objectives.levels import LevelTable
from diffpolicy.diffusion.objectives.objective import Conditioned, ConditionedNetwork, Objective, check_is_one_of
from diffpolicy.diffusion.reverse import Denoise
from diffpolicy.system.parts import WHOLE, Part, shared_draws
from diffpolicy.system.schema import Range


@dataclass
class ProgressiveConfig:
    """Settings of `Progressive`.

    Attributes:
        denoising: settings of the denoiser that it starts from; None for the teacher's.
        first_steps: of the first student, a power of two times `last_steps`.
        last_steps: of the last student, with which the policy samples.
        round_every: optimiser steps after which the student becomes the teacher.
    """

    BASE: ClassVar[dict[str, Any]] = EDM
    name: str = "progressive"
    denoising: Any = None
    first_steps: Annotated[int, Range(1, 4096)] = 16
    last_steps: Annotated[int, Range(1, 4096)] = 1
    round_every: Annotated[int, Range(1, 1_000_000_000)] = 1000


class Halving(NamedTuple):
    """A training batch: clean trajectories and noise [batch, H, A], and the step of the student [batch], 0 to 1."""

    clean: Tensor
    noise: Tensor
    chance: Tensor


class Progressive(nn.Module, Objective):
    """Progressive distillation; an `Objective`.

    Args:
        base: the schedule and the parameterization.
        first_steps, last_steps, round_every: see `ProgressiveConfig`.

    Raises:
        ValueError: the numbers of steps are not a power of two apart, or the schedule has too few levels.
    """

    denoises = False
    teaching = "required"
    round: Tensor
    places: Tensor  # [rounds, 2 * first_steps + 1], indices of levels; the last one of a round is the clean level

    def __init__(self, base: Denoising, first_steps: int, last_steps: int, round_every: int) -> None:
        super().__init__()
        self.base, self.schedule, self.condition_dropout = base, base.schedule, base.condition_dropout
        counts, levels = [first_steps], len(base.schedule)
        while counts[-1] > last_steps and counts[-1] % 2 == 0:
            counts.append(counts[-1] // 2)
        if counts[-1] != last_steps:
            raise ValueError(
                f"diffusion: first_steps {first_steps} must be last_steps {last_steps} times a power of two"
            )
        if 2 * first_steps > levels:
            raise ValueError(
                f"diffusion: first_steps {first_steps} needs {2 * first_steps} levels, the schedule has {levels}"
            )
        self.counts, self.every = counts, round_every
        self.sampler = {"name": "ddim", "steps": last_steps}
        self.teacher: Any = None
        self.table = LevelTable.ending_clean(base.table)
        self.register_buffer("round", torch.zeros((), dtype=torch.long))
        self.register_buffer("places", torch.full((len(counts), 2 * first_steps + 1), levels), persistent=False)
        for row, count in zip(self.places, counts, strict=True):
            share = torch.arange(2 * count, dtype=torch.float64) / (2 * count)
            row[: 2 * count] = (levels * (1.0 - share)).round().long() - 1  # as the spacing trailing

    def learn_from(self, teacher: nn.Module) -> None:
        """Begin with `teacher`."""
        self.teacher = copy.deepcopy(teacher).requires_grad_(False)

    def check_sampler(self, settings: Any) -> None:
        """Raise ValueError unless it is DDIM with the steps of the last student."""
        check_is_one_of(settings, ["ddim"], "progressive")
        steps = self.counts[-1]
        if settings.steps != steps or settings.spacing != "trailing" or settings.eta:
            raise ValueError(
                f"sampler: this policy was distilled to {steps} deterministic steps with trailing spacing, not "
                f"{settings.steps} with {settings.spacing} and eta {settings.eta}; give sampler.steps={steps}"
            )

    def draw(self, clean: Tensor, generator: torch.Generator, part: Part = WHOLE) -> Halving:
        """Noise and steps; see `Objective.draw`."""
        total, rows = shared_draws(part, len(clean))
        copies = self.base.draws
        chance = torch.rand(copies, total, generator=generator, device=clean.device)[:, rows].flatten()
        noise = torch.randn(copies, total, *clean.shape[1:], generator=generator, device=clean.device)
        noise = correlated(noise, self.schedule.correlation)
        return Halving(clean.expand(copies, *clean.shape).flatten(0, 1), noise[:, rows].flatten(0, 1), chance)

    def loss(
        self, network: ConditionedNetwork, batch: Halving, step: int | Tensor = 0, counts: Tensor | None = None
    ) -> Tensor:
        """The weighted mean squared error of the network's output, a scalar; see `Objective.loss`."""
        network, counts = self.base.repeated(network, counts)
        places = self.places[self.round]
        last = torch.full_like(self.round, self.counts[0]) >> self.round  # the student's steps in this round
        first = 2 * (batch.chance * last).floor().long()
        now, middle, end = (self.table.at(places[first + offset]) for offset in (0, 1, 2))
        x = now.noisy(batch.clean, batch.noise)
        with torch.no_grad():
            teacher = network.of(self.teacher)
            x_middle = now.step(x, now.estimate(teacher, x), middle)
            x_end = middle.step(x_middle, middle.estimate(teacher, x_middle), end)
            target = now.output_of_clean(now.clean_of_step(x, x_end, end), x)
        error = now.weight * (now.output(network, x) - target).square()
        return (error if counts is None else error * counts[..., None]).mean()

    @torch.no_grad()
    def stepped(self, network: nn.Module, step: int) -> None:
        """At the end of a round, the student becomes the teacher."""
        if (step + 1) % self.every == 0 and int(self.round) < len(self.counts) - 1:
            self.teacher.load_state_dict(network.state_dict())
            self.round += 1

    def denoiser(self, network: Conditioned) -> Denoise:
        """The clean estimate with which a DDIM step does what two of the teacher do."""
        return self.base.denoiser(network)
