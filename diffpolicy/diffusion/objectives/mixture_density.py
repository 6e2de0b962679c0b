"""Mixture density networks: the network's output describes a mixture of Gaussians over whole plans.

    p(plan) = sum_k weight_k N(plan; mean_k, std_k^2)                                        (Bishop 1994, eq. 23)

The network sees zeros. A plan is drawn with the chunk's own noise, so that it depends on no other robot's.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffpolicy.diffusion.objectives.objective import Conditioned, ConditionedNetwork, Objective, check_is_direct
from diffpolicy.diffusion.reverse import Denoise
from diffpolicy.diffusion.samplers.table import Row
from diffpolicy.diffusion.schedules import TIME_SCALE, from_nothing
from diffpolicy.system.parts import WHOLE, Part
from diffpolicy.system.schema import Range


@dataclass
class MixtureDensityConfig:
    """Settings of `MixtureDensity`.

    Attributes:
        components: Gaussians of the mixture.
        min_std: least standard deviation of a component, of normalised actions; it bounds the likelihood.
        spread: noise of the plans, in standard deviations of their component: 1 draws from the mixture, 0 takes the
            mean of the drawn component, which is smooth.
    """

    name: str = "mixture_density"
    components: Annotated[int, Range(1, 256)] = 5
    min_std: Annotated[float, Range(above=0, most=1)] = 0.01
    spread: Annotated[float, Range(least=0, most=1)] = 0.0


class Mixture(NamedTuple):
    """Mixtures over plans [B, H, A]: log_weight [B, K], mean and std [B, K, H, A]."""

    log_weight: Tensor
    mean: Tensor
    std: Tensor

    def log_density(self, plan: Tensor, counts: Tensor | None = None) -> Tensor:
        """log p(plan) [B] in nats, for plans [B, H, A]; `counts` [B, H] multiplies the terms of each waypoint."""
        terms = -0.5 * ((plan[:, None] - self.mean) / self.std).square() - self.std.log() - 0.5 * math.log(2 * math.pi)
        if counts is not None:
            terms = terms * counts[:, None, :, None]
        return torch.logsumexp(self.log_weight + terms.sum(dim=(2, 3)), dim=1)

    def sample(self, noise: Tensor, spread: float) -> Tensor:
        """A plan [B, H, A] for each standard normal `noise` [B, H, A]; exact for `spread` 1.

        The mean of the noise says which component; its place between the component's bounds is uniform again and
        becomes the mean of the noise that is left, which therefore is standard normal and independent of the choice.
        """
        size = noise[0].numel() ** 0.5
        along = noise.double().sum(dim=(1, 2)) / size
        bounds = self.log_weight.double().exp().cumsum(dim=1)
        chance = (0.5 * torch.erfc(-along / 2.0**0.5)).clamp(max=1.0 - 1e-15)[:, None] * bounds[:, -1:]
        chosen = torch.searchsorted(bounds, chance, right=True)
        at = chosen[:, :, None, None].expand(-1, 1, *noise.shape[1:])
        mean, std = (one.gather(1, at)[:, 0] for one in (self.mean, self.std))
        if spread == 0.0:
            return mean
        upper = bounds.gather(1, chosen)
        lower = torch.where(chosen > 0, bounds.gather(1, (chosen - 1).clamp(min=0)), 0.0)
        place = ((chance - lower) / (upper - lower)).clamp(1e-12, 1.0 - 1e-12)[:, 0]
        fresh = noise + ((2.0**0.5 * torch.erfinv(2.0 * place - 1.0) - along) / size)[:, None, None].to(noise)
        return mean + spread * std * fresh


class MixtureDensity(nn.Module, Objective):
    """The negative log-likelihood of a mixture; an `Objective`.

    Args:
        components, min_std, spread: see `MixtureDensityConfig`.
    """

    condition_dropout = 0.0
    denoises = False
    sampler = {"name": "direct", "steps": 1, "start": 1.0}  # noqa: RUF012

    def __init__(self, components: int, min_std: float, spread: float) -> None:
        super().__init__()
        self.components, self.min_std, self.spread = components, min_std, spread
        self.outputs = 3 * components  # means, standard deviations, and features whose mean is the logit of the weight
        self.schedule = from_nothing(1.0)

    def check_sampler(self, settings: Any) -> None:
        """Raise ValueError unless it is the sampler direct with one step from noise."""
        check_is_direct(settings, "mixture_density", start=1.0)

    def draw(self, clean: Tensor, generator: torch.Generator, part: Part = WHOLE) -> Tensor:
        """The trajectories themselves: nothing is random; see `Objective.draw`."""
        return clean

    def loss(
        self, network: ConditionedNetwork, batch: Tensor, step: int | Tensor = 0, counts: Tensor | None = None
    ) -> Tensor:
        """The mean negative log-likelihood per number of the plan, in nats; see `Objective.loss`."""
        output = network(torch.zeros_like(batch), batch.new_full((len(batch),), TIME_SCALE))
        return -self.mixture(output, batch).log_density(batch, counts).mean() / batch[0].numel()

    def mixture(self, output: Tensor, like: Tensor) -> Mixture:
        """The mixture that an output [B, H, outputs * A] describes, with the type of the plans `like` [B, H, A]."""
        parts = output.to(like.dtype).reshape(*like.shape[:2], 3, self.components, like.shape[2]).permute(0, 2, 3, 1, 4)
        mean, spread, logit = parts.unbind(dim=1)
        return Mixture(logit.mean(dim=(2, 3)).log_softmax(dim=1), mean, self.min_std + F.softplus(spread))

    def denoiser(self, network: Conditioned) -> Denoise:
        """A plan drawn from the mixture with the noise x."""

        def denoise(x: Tensor, row: Row) -> Tensor:
            return self.mixture(network(torch.zeros_like(x), row.time), x).sample(x, self.spread)

        return denoise
