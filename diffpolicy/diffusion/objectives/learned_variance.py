"""Learned variance: the network also estimates how much noise each ancestral step adds (Nichol & Dhariwal 2021).

Legend: beta, the variance that the forward process adds between two levels; beta-tilde, that of its posterior given
the clean trajectory; v, the network's second output; fraction, (v + 1) / 2, how far the log variance is from
log(beta-tilde) to log(beta).

    variance = exp(fraction * log(beta) + (1 - fraction) * log(beta-tilde))                                  (eq. 15)
    loss = L_simple + 0.001 * L_vlb, where only v gets the gradient of L_vlb                                 (eq. 16)
"""

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from diffpolicy.diffusion.objectives.denoising import Denoising, DenoisingConfig, NoisyBatch
from diffpolicy.diffusion.objectives.objective import Conditioned, ConditionedNetwork, Objective
from diffpolicy.diffusion.reverse import Denoise, Estimate
from diffpolicy.diffusion.samplers.ancestral import posterior_steps
from diffpolicy.diffusion.samplers.table import Number, Row
from diffpolicy.diffusion.schedule import Schedule
from diffpolicy.system.parts import WHOLE, Part
from diffpolicy.system.schema import Range
from diffpolicy.system.tables import Choice


@dataclass
class LearnedVarianceConfig(DenoisingConfig):
    """Settings of `LearnedVariance`: those of the denoiser, and the weight of L_vlb (nats per number)."""

    name: str = "learned_variance"
    vlb_weight: Annotated[float, Range(above=0, most=1.0)] = 1e-3


class Bounds(NamedTuple):
    """What the bound needs of the step from each level to the one before it, the first one to clean.

    Attributes:
        low, width: log(beta-tilde), and how far log(beta) is above it.
        gain: factor of the clean estimate in the mean.
        posterior: log variance of the posterior; minus infinity where it is known exactly.
        offset: what makes the term a divergence or, at the first level, a negative log-density.
        rarity: the inverse of the probability that a draw falls on this level.
    """

    low: Tensor
    width: Tensor
    gain: Tensor
    posterior: Tensor
    offset: Tensor
    rarity: Tensor

    def log_variance(self, fraction: Tensor) -> Tensor:
        """Log variance of the step, between that of the posterior (fraction 0) and beta (1)."""
        return self.low + fraction * self.width

    def term(self, error: Tensor, fraction: Tensor) -> Tensor:
        """The term of the bound of each number, in nats; `error` is that of the clean estimate.

        It is KL(N(m, posterior) || N(m + gain * error, variance)) and, at the first level, -log N(clean; estimate,
        variance).
        """
        log_variance = self.log_variance(fraction)
        spread = (self.posterior - log_variance).exp() + (self.gain * error).square() * (-log_variance).exp()
        return 0.5 * (log_variance + self.offset + spread)


class LearnedVariance(nn.Module, Objective):
    """Denoising, with a variance of each number in an ancestral step; an `Objective`.

    Args:
        base: the schedule, the parameterization, the weights and the distribution of levels.
        vlb_weight: see `LearnedVarianceConfig`.

    Raises:
        ValueError: the noise is correlated.
    """

    outputs = 2
    sampler: Choice = {"name": "ddpm", "variance": "learned"}  # noqa: RUF012

    bounds: Tensor

    def __init__(self, base: Denoising, vlb_weight: float) -> None:
        super().__init__()
        if base.schedule.correlation:
            raise ValueError(
                f"objective: learned_variance with noise of correlation {base.schedule.correlation}, expected white "
                "noise, whose bound is a sum over numbers; give diffusion.noise_correlation=0"
            )
        self.base, self.schedule, self.condition_dropout = base, base.schedule, base.condition_dropout
        self.vlb_weight = vlb_weight
        share = base.levels(base.schedule.levels)
        self.register_buffer("bounds", _bounds(base.schedule, share), persistent=False)

    def check_sampler(self, settings: object) -> None:
        """Raise ValueError if the sampler is not for denoisers."""
        if getattr(settings, "variance", None) != "learned":
            self.base.check_sampler(settings)

    def draw(self, clean: Tensor, generator: torch.Generator, part: Part = WHOLE) -> NoisyBatch:
        """Levels and noise, as for the denoiser; see `Objective.draw`."""
        return self.base.draw(clean, generator, part)

    def loss(
        self, network: ConditionedNetwork, batch: NoisyBatch, step: int | Tensor = 0, counts: Tensor | None = None
    ) -> Tensor:
        """L_simple + vlb_weight * L_vlb, per number, a scalar; see `Objective.loss`."""
        network, counts = self.base.repeated(network, counts)
        level = self.base.table.at(batch.level)
        x = level.noisy(batch.clean, batch.noise)
        output, v = level.output(network, x).chunk(2, dim=-1)
        target = level.on_clean * batch.clean + level.on_noise * batch.noise
        estimate = (level.skip * x + level.out * output).detach()
        bounds = self.at(batch.level)
        term = bounds.rarity * bounds.term(estimate - batch.clean, _fraction(v))
        error = level.weight * (output - target).square() + self.vlb_weight * term
        return (error if counts is None else error * counts[..., None]).mean()

    def at(self, level: Tensor) -> Bounds:
        """The bounds at levels [batch], each [batch, 1, 1]."""
        return Bounds(*self.bounds[level, :, None, None].unbind(dim=1))

    def denoiser(self, network: Conditioned) -> Denoise:
        """The clean estimate; where a row's noise is learned, `Estimate` with its fraction."""

        def denoise(x: Tensor, row: Row) -> Tensor | Estimate:
            found: list[Tensor] = []

            def first(x: Tensor, time: Number, stop: Number | None = None) -> Tensor:
                output, v = network(x, time, stop).chunk(2, dim=-1)
                found.append(v)
                return output

            clean = self.base.denoiser(first)(x, row)
            return clean if not row.has_spread else Estimate(clean, _fraction(found[0]))

        return denoise


def _fraction(v: Tensor) -> Tensor:
    return 0.5 * (v + 1.0)


def _bounds(schedule: Schedule, share: np.ndarray) -> Tensor:
    """The columns of `Bounds` [levels, 6] in float32."""
    now = schedule.levels[np.arange(len(schedule))[::-1]]
    gain, beta, posterior = (column[::-1] for column in posterior_steps(now, now.followed_by_clean()))
    low = posterior.copy()
    low[0] = posterior[1] if len(low) > 1 else beta[0]  # the posterior of clean has no variance: the next one's
    with np.errstate(divide="ignore"):
        log_posterior = np.log(posterior)
        rarity = np.where(share > 0, 1.0 / share, 0.0)
    offset = np.append(np.log(2.0 * np.pi), -log_posterior[1:] - 1.0)
    columns = (np.log(low), np.log(beta) - np.log(low), gain, log_posterior, offset, rarity)
    return torch.tensor(np.stack(columns, axis=-1).tolist())
