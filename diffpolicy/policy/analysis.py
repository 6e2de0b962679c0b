"""Analysis of a diffusion policy by its probability-flow ODE: likelihood, encoding and interpolation of plans.

Shape legend: B batch, H horizon, A action.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from diffpolicy.diffusion.likelihood import LogDensity, elbo, log_likelihood
from diffpolicy.diffusion.ode import Flow, check_fraction, great_circle
from diffpolicy.policy.diffusion import DiffusionPolicy
from diffpolicy.policy.precision import like_parameters


class PolicyAnalysis:
    """Analyses plans [B, H, A] in physical units under `policy`, given observations {key: [B, n_obs_steps, *shape]}.

    No constraint is applied. All methods raise ValueError if a plan, observation or setting is invalid.
    """

    def __init__(self, policy: DiffusionPolicy) -> None:
        self._policy = policy

    def log_likelihood(
        self,
        observation: Mapping[str, Tensor],
        plan: Tensor,
        steps: int = 20,
        probes: int = 0,
        generator: torch.Generator | None = None,
        method: str = "rk4",
    ) -> LogDensity:
        """Log-density of plans under the policy, in nats [B] (Song et al. 2021b, appendix D.2).

        Args:
            steps: steps of method rk4 (Runge-Kutta of order 4); adaptive (scipy's DOP853) ignores it.
            probes: number of Hutchinson probes, each of which costs an evaluation. With 0 the divergence is exact and
                costs H * A evaluations.
            generator: draws the probes, on the CPU; needed if there are any.
        """
        if probes < 0 or (probes and generator is None):
            raise ValueError(f"log_likelihood: probes {probes} must be at least 0 and need a generator")
        self._check_density()
        x = self._encoded(plan)
        flow = self._flow(observation, len(x), copies=probes or x[0].numel())
        bits = torch.randint(2, (probes, *x.shape), generator=generator)
        signs = (2.0 * bits - 1.0).to(x) if probes else None
        return self._log_density(log_likelihood(flow, x, steps, signs, method=method))

    @torch.no_grad()
    def elbo(
        self, observation: Mapping[str, Tensor], plan: Tensor, generator: torch.Generator, draws: int = 4
    ) -> LogDensity:
        """A lower bound of the chain's log-density, in nats [B], estimated by `draws` draws of noise per trained level.

        It is a bound in expectation over the draws, and of the data's density only on average over the data. With 4
        draws the standard deviation of the estimate is 1.1 nats (shipped checkpoint, 24 numbers a plan).
        """
        self._check_density()
        x = self._encoded(plan)
        flow = self._flow(observation, len(x))
        return self._log_density(elbo(flow.schedule, flow.denoise, x, draws, generator))

    @torch.no_grad()
    def encode(self, observation: Mapping[str, Tensor], plan: Tensor, steps: int = 50, method: str = "ddim") -> Tensor:
        """The noise that the probability-flow ODE maps to `plan`, [B, *encoded_shape] (DDIM inversion from alpha 1).

        `method` is ddim, rk4 (4 evaluations per step) or adaptive.
        """
        x = self._encoded(plan)
        return self._flow(observation, len(x)).to_noise(x, steps, method)

    @torch.no_grad()
    def decode(self, observation: Mapping[str, Tensor], noise: Tensor, steps: int = 50, method: str = "ddim") -> Tensor:
        """The plan [B, H, A] of a noise [B, *encoded_shape]: the end of DDIM, at alpha 1.

        It inverts `encode` up to what the network takes for noise in the plan, as much as the lowest level has.
        """
        shape = list(self._policy.codec.encoded_shape(self._policy.config.window.horizon))
        noise = self._checked("noise", noise, shape)
        return self._policy.codec.decode(self._flow(observation, len(noise)).to_clean(noise, steps, method))

    def interpolate(
        self, observation: Mapping[str, Tensor], first: Tensor, second: Tensor, fraction: float, steps: int = 50
    ) -> Tensor:
        """A plan [B, H, A] between two, from spherical interpolation of their noises (Song et al. 2021a, section 5.3).

        `fraction` 0 gives the first plan and 1 the second.
        """
        check_fraction(fraction)
        ends = [self.encode(observation, plan, steps) for plan in (first, second)]
        return self.decode(observation, great_circle(ends[0], ends[1], fraction), steps)

    def _flow(self, observation: Mapping[str, Tensor], batch: int, copies: int = 1) -> Flow:
        """The probability-flow ODE given these observations, for a batch that is repeated `copies` times."""
        if not self._policy.objective.denoises:
            raise ValueError(
                f"analysis: likelihood, inversion and interpolation need a denoiser at all levels of noise, and this "
                f"policy was trained with diffusion {self._policy.config.diffusion.name}; train one with diffusion=ddpm"
            )
        condition = self._policy.condition(self._policy.checked(observation, batch)).repeated(copies)
        return Flow(self._policy.denoiser_at(condition), self._policy.objective.schedule)

    def _encoded(self, plan: Tensor) -> Tensor:
        config = self._policy.config
        return self._policy.codec.encode(self._checked("plan", plan, [config.window.horizon, config.action_dim]))

    def _checked(self, name: str, values: Tensor, shape: list[int]) -> Tensor:
        self._policy.check_fitted()
        values = like_parameters(torch.as_tensor(values), self._policy.network)
        expected = [len(values), *shape]
        if list(values.shape) != expected or not bool(values.isfinite().all()):
            raise ValueError(
                f"{name}: shape {list(values.shape)}, expected {expected} (batch, horizon, action), all finite"
            )
        return values

    def _check_density(self) -> None:
        codec = self._policy.codec
        if not codec.is_invertible:
            raise ValueError(
                f"analysis: plans have no density, because the policy's {type(codec).__name__} is not invertible: some "
                "of their details are not encoded; train a policy with codec=normalizer"
            )

    def _log_density(self, encoded: Tensor) -> LogDensity:
        per_plan: Any = self._policy.codec.log_determinant(self._policy.config.window.horizon)
        return LogDensity(encoded, encoded + per_plan)
