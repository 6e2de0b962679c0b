"""The diffusion policy: observations in, a chunk of actions out, in physical units; `PolicyController` keeps the state.

Shape legend: B batch, H horizon, A action.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from diffpolicy.codecs.normalizer import Normalizer, Rows
from diffpolicy.diffusion.guidance import Guide
from diffpolicy.diffusion.likelihood import LogDensity, elbo, log_likelihood
from diffpolicy.diffusion.objectives.denoising import WHOLE, Part
from diffpolicy.diffusion.ode import Flow, check_fraction, great_circle
from diffpolicy.diffusion.reverse import Denoise
from diffpolicy.diffusion.samplers.table import StepTable
from diffpolicy.networks.backbones.unet1d_unrolled import at_condition
from diffpolicy.networks.encoders.low_dim import LowDimEncoder
from diffpolicy.policy.build import Sampler, build_guide, build_network, build_objective, build_sampler
from diffpolicy.policy.observations import checked_observation
from diffpolicy.policy.plan_projection import Constrain, PlanProjection, Projection
from diffpolicy.policy.sampling import ActionChunk, replayed, sampled
from diffpolicy.policy.settings import GuidanceConfig, PolicyConfig, SamplerConfig, policy_config
from diffpolicy.system import checkpoint
from diffpolicy.system.replay import Replays


class DiffusionPolicy(nn.Module):
    """p(actions | observations), learned by denoising (Chi et al. 2023).

    Attributes:
        config: everything besides the weights.
        metadata: what the trainer wrote beside the policy into its checkpoint (task, step, ...).
    """

    levels: Tensor  # [levels, 8], what training needs of every noise level

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__()
        self.config = config
        self.metadata: dict[str, Any] = {}
        dropout = config.diffusion.condition_dropout
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"diffusion: condition_dropout {dropout} must be at least 0 and below 1")
        self.objective = build_objective(config.diffusion)
        self.encoder = LowDimEncoder(config.observations, config.window.n_obs_steps)
        self.network = build_network(config, self.encoder.condition_dim)
        if dropout > 0:
            self.null_condition = nn.Parameter(torch.zeros(self.encoder.condition_dim))
        self.normalizers = nn.ModuleList(Normalizer(config.observations[key]) for key in self.encoder.keys)
        self.action_normalizer = Normalizer(config.action_dim)
        self.register_buffer("levels", self.objective.table(), persistent=False)
        self.has_null_condition = dropout > 0
        self._is_fitted = False
        self._replays: Replays | None = None

    @property
    def device(self) -> torch.device:
        return self.action_normalizer.scale.device

    def sampler(self, config: SamplerConfig) -> Sampler:
        """A sampler for this policy's schedule, by name."""
        return build_sampler(self.objective.schedule, config)

    def guide(self, config: GuidanceConfig) -> Guide | None:
        """The guidance of these settings, None where they ask for none.

        Raises:
            ValueError: a number out of its range; classifier-free guidance of a policy trained without dropout of
                the condition.
        """
        if config.weight != 0.0 and not self.has_null_condition:
            raise ValueError(
                f"guidance: weight {config.weight} needs a policy trained with diffusion.condition_dropout above 0 "
                "(0.1 by custom), which learns a null condition; this one was trained without"
            )
        if config.threshold != 1.0 and self.config.normalizer != "limits":
            raise ValueError(
                f"guidance: threshold {config.threshold} needs actions normalised to [-1, 1], data.normalizer=limits"
            )
        return build_guide(config)

    def compile(self) -> None:
        """From now on replay the reverse loop on a GPU, the safety projection included, as one CUDA graph.

        It is captured at the first chunk of its kind (batch size, sampler, safety); weights may change later. What
        cannot be captured runs call by call as before: a guide, a constraint of your own, a sampler of diffusers,
        autocast, a CPU. Other than torch's method of this name it compiles no kernels; `network.compile()` does. Called
        again, it forgets what was captured.
        """
        self._replays = Replays()

    def fit_normalizers(self, observations: Mapping[str, Rows], actions: Rows) -> None:
        """Take the statistics of all demonstrations: {key: [rows, dim]} and [rows, A]."""
        for key, normalizer in self._observation_normalizers().items():
            normalizer.fit(observations[key], self.config.normalizer)
        self.action_normalizer.fit(actions, self.config.normalizer)

    def loss(
        self, observations: Mapping[str, Tensor], actions: Tensor, generator: torch.Generator, part: Part = WHOLE
    ) -> Tensor:
        """The training loss of a batch, a scalar.

        Args:
            observations: {key: [B, n_obs_steps, dim]}, physical units.
            actions: [B, H, A], physical units; the first is simultaneous with the first observation.
            generator: of levels and noise, on the policy's device; those of a part are cut from those of the whole.
        """
        self._check_fitted()
        clean = self.action_normalizer(actions)
        level, noise, chance = self.objective.draw(self.levels, clean, generator, part)
        condition = self._encode(observations)
        if self.has_null_condition:
            drop = chance[:, None] < self.config.diffusion.condition_dropout
            condition = torch.where(drop, self.null_condition, condition)
        return self.objective.loss(self.network, self.levels, clean, noise, level, condition)

    def predict_action_chunk(
        self,
        observation: Mapping[str, Tensor],
        generators: Sequence[torch.Generator],
        sampler: Sampler | None = None,
        constrain: Constrain | Projection | None = None,
        guide: Guide | None = None,
    ) -> ActionChunk:
        """Sample a plan for every observation of the batch.

        Args:
            observation: {key: [B, n_obs_steps, dim]}, physical units; tensors or arrays.
            generators: one per row of the batch, on the CPU: a row's noise does not depend on its neighbours.
            sampler: from `sampler`; DDIM with 10 steps by default.
            constrain: applied to every clean estimate in physical units, and once more to the plan that is
                returned; waypoints before the present pass unchanged. A function (plan, row), or a `Projection`,
                which is also told the step.
            guide: makes of the denoiser another, on normalised actions; from `guide`, or your own.

        Raises:
            ValueError: an observation that is missing, unknown, of the wrong shape or not finite; a number of
                generators other than B; a clean estimate or plan that is not finite.
        """
        self._check_fitted()
        observation = self._checked(observation, len(generators))
        sampler = sampler or self.sampler(SamplerConfig())
        present, window = self.config.window.n_obs_steps - 1, self.config.window
        projection = PlanProjection(self.action_normalizer, self.config.normalizer == "limits", present, constrain)
        with torch.inference_mode(guide is None), torch.no_grad():  # a guide may ask for gradients
            shape = (len(sampler) + 1, window.horizon, self.config.action_dim)
            noise = torch.stack([torch.randn(shape, generator=each) for each in generators], dim=1).to(self.device)
            if self._replays and isinstance(sampler, StepTable) and guide is None and projection.is_replayable:
                denoiser = functools.partial(self._denoiser, guide=None, sampler=sampler)
                denoised = replayed(self._replays, self, denoiser, observation, sampler, noise, projection)
            else:
                denoised = sampled(self._denoiser(observation, guide, sampler), sampler, noise, projection)
            plan = projection.finish(denoised, sampler.rows[-1], len(sampler))
        return ActionChunk(plan[:, present : present + window.n_action_steps], plan)

    def log_likelihood(
        self,
        observation: Mapping[str, Tensor],
        plan: Tensor,
        steps: int = 20,
        probes: int = 0,
        generator: torch.Generator | None = None,
        method: str = "rk4",
    ) -> LogDensity:
        """Log-density of plans under the policy, by the probability-flow ODE (Song et al. 2021b, appendix D.2).

        Args:
            observation: {key: [B, n_obs_steps, dim]}, physical units.
            plan: the whole horizon [B, H, A], physical units.
            steps: of method rk4 (Runge-Kutta of order 4); adaptive, scipy's DOP853, needs none.
            probes: Hutchinson's, an evaluation each; by default the divergence is exact, which costs H * A of them.
            generator: of the probes, on the CPU.

        Raises:
            ValueError: a plan or observation that does not fit.
        """
        if probes < 0 or (probes and generator is None):
            raise ValueError(f"log_likelihood: probes {probes} must be at least 0 and need a generator")
        copies = probes or self.config.window.horizon * self.config.action_dim
        flow, x = self._flow(observation, plan, copies)
        bits = torch.randint(2, (probes, *plan.shape), generator=generator)
        signs = (2.0 * bits - 1.0).to(x) if probes else None
        return self._log_density(log_likelihood(flow, x, steps, signs, method=method))

    def elbo(
        self, observation: Mapping[str, Tensor], plan: Tensor, generator: torch.Generator, draws: int = 4
    ) -> LogDensity:
        """A lower bound of the log-likelihood, by `draws` draws of noise at every trained level."""
        flow, x = self._flow(observation, plan)
        with torch.no_grad():
            return self._log_density(elbo(self.objective.schedule, flow.denoise, x, draws, generator))

    @torch.no_grad()
    def encode(self, observation: Mapping[str, Tensor], plan: Tensor, steps: int = 50, method: str = "ddim") -> Tensor:
        """The noise [B, H, A] that the probability-flow ODE takes to `plan` [B, H, A] (DDIM inversion).

        method is ddim, rk4 (4 evaluations a step) or adaptive.
        """
        flow, x = self._flow(observation, plan)
        return flow.to_noise(x, steps, method)

    @torch.no_grad()
    def decode(self, observation: Mapping[str, Tensor], noise: Tensor, steps: int = 50, method: str = "ddim") -> Tensor:
        """The inverse of `encode`: a plan [B, H, A] in physical units. No constraint acts on it."""
        flow, _ = self._flow(observation, noise)
        noise = torch.as_tensor(noise, dtype=torch.float32, device=self.device)
        return self.action_normalizer.inverse(flow.to_clean(noise, steps, method))

    def interpolate(
        self, observation: Mapping[str, Tensor], first: Tensor, second: Tensor, fraction: float, steps: int = 50
    ) -> Tensor:
        """A plan [B, H, A] between two, by the great circle between their noises (Song et al. 2021a, section 5.3)."""
        check_fraction(fraction)
        ends = [self.encode(observation, plan, steps) for plan in (first, second)]
        return self.decode(observation, great_circle(ends[0], ends[1], fraction), steps)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors into a new folder."""
        checkpoint.write(Path(folder), self.checkpoint_config(), {"model": self.state_dict()})

    def checkpoint_config(self) -> dict[str, Any]:
        """What config.json holds."""
        return {"policy": dataclasses.asdict(self.config), **self.metadata}

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str | torch.device = "cpu") -> Self:
        """Load a checkpoint folder, or a link to one, and verify it; ready to act.

        Raises:
            FileNotFoundError: no checkpoint there.
            ValueError: damaged, or tensors missing, unknown or of the wrong shape.
        """
        path = checkpoint.resolve(Path(folder).expanduser())
        content = checkpoint.read_config(path)
        policy = cls(policy_config(content["policy"]))
        policy.metadata = {k: v for k, v in content.items() if k not in ("policy", "sha256", "format_version")}
        tensors = checkpoint.read_tensors(path, "model")
        checkpoint.check_tensors(f"checkpoint: {path}", tensors, policy.state_dict())
        policy.load_state_dict(tensors)
        policy._check_fitted()
        return policy.to(device).eval()

    def _observation_normalizers(self) -> dict[str, Normalizer]:
        pairs = zip(self.encoder.keys, self.normalizers, strict=True)
        return {key: module for key, module in pairs if isinstance(module, Normalizer)}

    def _denoiser(self, observation: Mapping[str, Tensor], guide: Guide | None, sampler: Sampler | None) -> Denoise:
        times = [row.time for row in sampler.rows] if sampler else []  # known beforehand, they make it faster

        def at(condition: Tensor) -> Denoise:
            return self.objective.denoiser(at_condition(self.network, condition, times, self.config.window.horizon))

        condition = self._encode(observation)
        without = at(self.null_condition.expand_as(condition)) if guide and self.has_null_condition else None
        return guide(at(condition), without) if guide else at(condition)

    def _flow(self, observation: Mapping[str, Tensor], plan: Tensor, copies: int = 1) -> tuple[Flow, Tensor]:
        """The probability-flow ODE of these observations, `copies` times over, and the normalised plan [B, H, A]."""
        self._check_fitted()
        plan = torch.as_tensor(plan, dtype=torch.float32, device=self.device)
        shape = [len(plan), self.config.window.horizon, self.config.action_dim]
        if list(plan.shape) != shape or not bool(plan.isfinite().all()):
            raise ValueError(f"plan: shape {list(plan.shape)}, expected {shape} (batch, horizon, action), all finite")
        observation = {key: value.repeat(copies, 1, 1) for key, value in self._checked(observation, len(plan)).items()}
        return Flow(self._denoiser(observation, None, None), self.objective.schedule), self.action_normalizer(plan)

    def _log_density(self, normalized: Tensor) -> LogDensity:
        per_step = self.action_normalizer.scale.abs().log().sum()
        return LogDensity(normalized, normalized + self.config.window.horizon * per_step)

    def _encode(self, observations: Mapping[str, Tensor]) -> Tensor:
        normalizers = self._observation_normalizers()
        return self.encoder({key: normalizers[key](observations[key]) for key in normalizers})

    def _checked(self, observation: Mapping[str, Tensor], batch: int) -> dict[str, Tensor]:
        checked = checked_observation(observation, self.config.observations, (batch, self.config.window.n_obs_steps))
        return {key: value.to(self.device) for key, value in checked.items()}

    def _check_fitted(self) -> None:
        if self._is_fitted:
            return
        normalizers = {**self._observation_normalizers(), "action": self.action_normalizer}
        missing = [key for key, normalizer in normalizers.items() if not normalizer.is_fitted]
        if missing:
            raise ValueError(
                f"policy: no normalisation statistics for {', '.join(missing)}; call fit_normalizers first"
            )
        self._is_fitted = True
