"""A conditional variational autoencoder: a latent says which of the possible plans it is (Sohn et al. 2015).

    log p(plan) >= E_q[log N(plan; decoder(z), std^2)] - KL(q(z | plan) || N(0, 1))                      (the ELBO)

The latent z has the shape of the plan. The decoder is the policy's network, with z in place of the noisy trajectory;
the posterior q is a second network of the same kind, which sees the plan and is only needed for training. In ACT (Zhao
et al. 2023) both are transformers.
"""

import copy
import math
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor, nn

from diffpolicy.diffusion.objectives.objective import Conditioned, ConditionedNetwork, Objective, check_is_direct
from diffpolicy.diffusion.reverse import Denoise
from diffpolicy.diffusion.samplers.table import Row
from diffpolicy.diffusion.schedules import TIME_SCALE, from_nothing
from diffpolicy.system.parts import WHOLE, Part, shared_draws
from diffpolicy.system.posterior import Posterior
from diffpolicy.system.schema import Range


@dataclass
class VariationalConfig:
    """Settings of `Variational`.

    Attributes:
        beta: weight of the KL divergence; 1 is the ELBO (Higgins et al. 2017).
        std: standard deviation of the plans around the decoder's, of normalised actions.
        free_nats: divergence of each number of the latent that costs nothing, against a latent that says nothing
            (Kingma et al. 2016, appendix C.8; here for each window, so that the loss does not depend on the batch).
    """

    name: str = "variational"
    beta: Annotated[float, Range(least=0, most=1e6)] = 1.0
    std: Annotated[float, Range(above=0, most=10)] = 0.1
    free_nats: Annotated[float, Range(least=0, most=100)] = 0.0


class Latent(NamedTuple):
    """A training batch: trajectories and the posterior's standard normal noise, both [B, H, A]."""

    clean: Tensor
    noise: Tensor


class Variational(nn.Module, Objective):
    """The negative ELBO of a conditional VAE; an `Objective`.

    The network has two outputs, so that the posterior, a copy, can return a mean and a spread. The decoder's second
    output is not used.

    Args:
        beta, std, free_nats: see `VariationalConfig`.
    """

    condition_dropout = 0.0
    denoises = False
    outputs = 2
    sampler = {"name": "direct", "steps": 1, "start": 1.0}  # noqa: RUF012

    def __init__(self, beta: float, std: float, free_nats: float) -> None:
        super().__init__()
        self.beta, self.std, self.free_nats = beta, std, free_nats
        self.schedule = from_nothing(1.0)
        self.posterior: Any = None

    def attach(self, network: nn.Module) -> None:
        """Make the posterior a network like `network`."""
        self.posterior = copy.deepcopy(network)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The groups of the posterior."""
        return self.posterior.parameter_groups()

    def check_sampler(self, settings: Any) -> None:
        """Raise ValueError unless it is the sampler direct with one step from noise."""
        check_is_direct(settings, "variational", start=1.0)

    def draw(self, clean: Tensor, generator: torch.Generator, part: Part = WHOLE) -> Latent:
        """The noise of the latents; see `Objective.draw`."""
        total, rows = shared_draws(part, len(clean))
        noise = torch.randn(total, *clean.shape[1:], generator=generator, device=clean.device)
        return Latent(clean, noise[rows].to(clean))

    def loss(
        self, network: ConditionedNetwork, batch: Latent, step: int | Tensor = 0, counts: Tensor | None = None
    ) -> Tensor:
        """The squared error plus 2 std^2 beta times the divergence, per number of the plan; see `Objective.loss`.

        For beta 1 without free nats this is the negative ELBO, up to a factor and a constant.
        """
        error, divergence = self._parts(network, batch)
        error = error if counts is None else error * counts[..., None]
        return (error + 2.0 * self.std**2 * self.beta * divergence.clamp(min=self.free_nats)).mean()

    def elbo(self, network: ConditionedNetwork, batch: Latent) -> Tensor:
        """The evidence lower bound of log p(clean) in nats [B], estimated with one latent for each trajectory."""
        error, divergence = self._parts(network, batch)
        log_density = -0.5 * error / self.std**2 - math.log(self.std) - 0.5 * math.log(2.0 * math.pi)
        return (log_density - divergence).sum(dim=(1, 2))

    def denoiser(self, network: Conditioned) -> Denoise:
        """The decoder's plan for the latent x."""

        def denoise(x: Tensor, row: Row) -> Tensor:
            return network(x, row.time)[..., : x.shape[2]]

        return denoise

    def _parts(self, network: ConditionedNetwork, batch: Latent) -> tuple[Tensor, Tensor]:
        """The squared error and the divergence of each number, both [B, H, A]."""
        clean, features = batch.clean, batch.clean.shape[2]
        time = clean.new_full((len(clean),), TIME_SCALE)
        of_plan = network.of(self.posterior)(clean, torch.zeros_like(time)).to(clean.dtype)
        posterior = Posterior.of(of_plan[..., :features], of_plan[..., features:])
        plan = network(posterior.at(batch.noise), time)[..., :features]
        return (plan - clean).square(), posterior.divergence()
