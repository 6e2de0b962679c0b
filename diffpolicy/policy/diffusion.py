"""The diffusion policy: observations in, a chunk of actions out; `PolicyController` keeps the state between ticks.

Shape legend: B batch, H horizon, A action.
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from diffpolicy.codecs.codec import Codec, DataArray
from diffpolicy.codecs.normalizer import Normalizer
from diffpolicy.diffusion.guidance import Guide, build_guide
from diffpolicy.diffusion.objectives.objective import WHOLE, ConditionedNetwork, Objective, Part, shared_draws
from diffpolicy.diffusion.reverse import Denoise
from diffpolicy.diffusion.samplers.settings import GuidanceConfig
from diffpolicy.diffusion.samplers.table import StepTable
from diffpolicy.networks.condition import Condition
from diffpolicy.networks.layers.decay import joined
from diffpolicy.networks.protocols import Encoder
from diffpolicy.policy import build
from diffpolicy.policy.normalizers import observation_normalizer
from diffpolicy.policy.observations import checked_observation
from diffpolicy.policy.plan_projection import Constrain, PlanProjection, Projection
from diffpolicy.policy.precision import check_precision, like_parameters
from diffpolicy.policy.pretrained import read_pretrained, write_pretrained
from diffpolicy.policy.sampling import ActionChunk, Sampling, replayed, sampled
from diffpolicy.policy.settings import PolicyConfig
from diffpolicy.system.replay import Replays
from diffpolicy.system.tables import Choice


class DiffusionPolicy(nn.Module):
    """p(actions | observations), learned by denoising (Chi et al. 2023).

    Attributes:
        config: all settings, with the defaults filled in.
        metadata: what the trainer saves with the policy in a checkpoint (task, step, ...).
    """

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__()
        self.config = config = build.resolved(config)
        self.metadata: dict[str, Any] = {}
        self.codec: Codec = build.build_codec(config)
        self.encoder: Encoder = build.build_encoder(config)
        self.objective: Objective = build.build_objective(config.diffusion)
        self.null_condition = nn.ParameterDict()
        self._encoded_shape = self.codec.encoded_shape(config.window.horizon)
        self.network = build.build_network(config, self._encoded_shape, self.encoder.output)
        if self.objective.condition_dropout > 0:
            self.null_condition.update(self.encoder.output.null(self.network.reads))
        self.objective.attach(self.network)
        self._vectors = sorted(key for key, spec in config.observations.items() if spec.kind == "vector")
        self.normalizers = nn.ModuleList(observation_normalizer(config, key) for key in self._vectors)
        self._is_fitted = False
        self._replays: Replays | None = None

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def _apply(self, fn: Any, recurse: bool = True) -> Self:  # of `to`, `double` and their like
        check_precision(fn(torch.zeros(1)).dtype)
        return super()._apply(fn, recurse)

    @property
    def has_null_condition(self) -> bool:
        """Whether it was also trained without observations, as classifier-free guidance needs."""
        return len(self.null_condition) > 0

    def sampler(self, choice: Choice = "ddim", steps: int | None = None) -> build.Sampler:
        """A sampler for this policy's schedule: a name, a mapping with a name, or settings such as `DdimConfig`.

        `steps` overrides the number in the settings. Raises ValueError if the choice is unknown or does not fit.
        """
        return build.build_sampler(self.objective.schedule, choice, steps)

    def sampling(self, choice: Choice = "ddim", steps: int | None = None) -> Sampling:
        """The sampler, and the guide that its settings ask for. Raises ValueError as `sampler` and `guide`."""
        settings = build.sampler_settings(choice, steps)
        return Sampling(self.sampler(settings), self.guide(settings.guidance), settings)

    def guide(self, config: GuidanceConfig) -> Guide | None:
        """The guidance of these settings, or None; raises ValueError if the policy was not trained for it."""
        if config.weight != 0.0 and not self.has_null_condition:
            raise ValueError(
                f"guidance: weight {config.weight} needs a policy trained with diffusion.condition_dropout above 0 "
                "(typically 0.1), which learns a null condition; this one was trained without"
            )
        if config.threshold != 1.0 and self.codec.limits != (-1.0, 1.0):
            raise ValueError(
                f"guidance: threshold {config.threshold} needs actions encoded into [-1, 1]: codec=normalizer with "
                f"data.normalizer=limits; this policy's {type(self.codec).__name__} has limits {self.codec.limits}"
            )
        return build_guide(config)

    def capture(self) -> None:
        """Replay the reverse loop on a GPU as one CUDA graph from now on, including the safety projection.

        The graph is captured at the first chunk of each kind (batch size, sampler, safety). Weights may change later.
        A guide, your own constraint, a diffusers sampler, autocast and a CPU cannot be captured; the loop then runs
        call by call. To compile kernels use `network.compile()`. Calling this again discards all captured graphs.
        """
        self._replays = Replays()

    def fit(self, observations: Mapping[str, DataArray], actions: DataArray) -> None:
        """Compute the normalisation statistics of all demonstrations: {key: [rows, features]} and [rows, A].

        Raises ValueError if data lack a key or have no rows, the wrong shape or values that are not finite.
        """
        if missing := [key for key in self._vectors if key not in observations]:
            raise ValueError(f"fit: the observations lack {', '.join(missing)}; they have {sorted(observations)}")
        for key, normalizer in self._observation_normalizers().items():
            normalizer.fit(observations[key])
        self.codec.fit(actions)

    def loss(
        self,
        observations: Mapping[str, Tensor],
        actions: Tensor,
        generator: torch.Generator,
        part: Part = WHOLE,
        step: int | Tensor = 0,
        counts: Tensor | None = None,
    ) -> Tensor:
        """The training loss of a batch, a scalar.

        Args:
            observations: {key: [B, n_obs_steps, *shape]}, physical units.
            actions: [B, H, A], physical units; the first one belongs to the first observation.
            generator: draws levels and noise, on the policy's device.
            part: which part of a larger batch this is; its random numbers are a slice of those of the whole.
            step: optimiser step, for objectives that change during training.
            counts: [B, H], by which each action's error is multiplied.
        """
        self.check_fitted()
        batch = self.objective.draw(self.codec.encode(like_parameters(actions, self.network)), generator, part)
        condition = self.condition(observations)
        if self.has_null_condition:
            total, rows = shared_draws(part, len(actions))
            chance = torch.rand(total, generator=generator, device=actions.device)[rows]
            null = Condition.null(self.null_condition, len(actions))
            condition = condition.mixed(chance < self.objective.condition_dropout, null)
        network = ConditionedNetwork(self.network, condition.fields(self.network.reads))
        return self.objective.loss(network, batch, step, *([] if counts is None else [counts]))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Optimiser groups of the parameters that are needed to act, then of those that only the objective trains."""
        besides: Any = [self.null_condition, self.encoder, self.codec]
        return [*joined(self.network.parameter_groups(), besides), *self.objective.parameter_groups()]

    def stepped(self, step: int) -> None:
        """Called after optimiser step `step`."""
        self.objective.stepped(self.network, step)

    def predict_action_chunk(
        self,
        observation: Mapping[str, Tensor],
        generators: Sequence[torch.Generator],
        sampler: build.Sampler | None = None,
        constrain: Constrain | Projection | None = None,
        guide: Guide | None = None,
    ) -> ActionChunk:
        """Sample a plan for every observation of the batch.

        Args:
            observation: {key: [B, n_obs_steps, *shape]}, physical units; tensors or arrays.
            generators: one per row of the batch, on the CPU, so that the noise of a row does not depend on the others.
            sampler: from `sampler`; DDIM with 10 steps by default.
            constrain: applied to every clean estimate in physical units and once more to the returned plan. Waypoints
                before the present are left unchanged. A function (plan, row), or a `Projection`, which also gets the
                step.
            guide: wraps the denoiser, on encoded actions; from `guide`, or your own.

        Raises:
            ValueError: an observation is missing, unknown, of the wrong shape or not finite; there are not B
                generators; a clean estimate or the plan is not finite.
        """
        self.check_fitted()
        observation = self.checked(observation, len(generators))
        sampler = sampler or self.sampler()
        present, window = self.config.window.n_obs_steps - 1, self.config.window
        projection = PlanProjection(self.codec, present, constrain)
        with torch.inference_mode(guide is None), torch.no_grad():  # a guide may ask for gradients
            shape = (len(sampler) + 1, *self._encoded_shape)
            noise = torch.stack([torch.randn(shape, generator=each) for each in generators], dim=1)
            noise = like_parameters(noise, self.network)
            if self._replays and isinstance(sampler, StepTable) and guide is None and projection.is_replayable:
                denoiser = functools.partial(self._denoiser, guide=None, sampler=sampler)
                denoised = replayed(self._replays, self, denoiser, observation, sampler, noise, projection)
            else:
                denoised = sampled(self._denoiser(observation, guide, sampler), sampler, noise, projection)
            plan = projection.finish(denoised, sampler.rows[-1], len(sampler))
        return ActionChunk(plan[:, present : present + window.n_action_steps], plan)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors into a new folder; raises FileExistsError if it exists."""
        write_pretrained(self, folder)

    def acting_state(self) -> dict[str, Tensor]:
        """The part of `state_dict` that is needed to act, without what only training needs."""
        return {name: value for name, value in self.state_dict().items() if not name.startswith("objective.")}

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str | torch.device = "cpu") -> Self:
        """Load and verify a checkpoint folder, on disk or shipped, or a link to one; the policy is ready to act.

        Raises FileNotFoundError or, if it is damaged or of another kind, ValueError.
        """
        return read_pretrained(folder, {"diffusion": cls}).to(device).eval()

    def _observation_normalizers(self) -> dict[str, Normalizer]:
        pairs = zip(self._vectors, self.normalizers, strict=True)
        return {key: module for key, module in pairs if isinstance(module, Normalizer)}

    def condition(self, observations: Mapping[str, Tensor]) -> Condition:
        """Normalise and encode checked observations into those fields of the condition that the network reads."""
        seen = {key: like_parameters(observations[key], self.network) for key in self._vectors}
        normalized = {key: normalizer.encode(seen[key]) for key, normalizer in self._observation_normalizers().items()}
        return self.encoder({**observations, **normalized}).only(self.network.reads)

    def denoiser_at(self, condition: Condition, times: Sequence[float] = ()) -> Denoise:
        """The denoiser at a condition; it is faster at `times` that are given in advance."""
        return self.objective.denoiser(self.network.at_condition(condition, times, self._encoded_shape[0]))

    def _denoiser(self, observation: Mapping[str, Tensor], guide: Guide | None, sampler: build.Sampler) -> Denoise:
        times = [row.time for row in sampler.rows]
        denoise = self.denoiser_at(self.condition(observation), times)
        if guide is None:
            return denoise
        null = Condition.null(self.null_condition, len(next(iter(observation.values()))))
        return guide(denoise, self.denoiser_at(null, times) if self.has_null_condition else None)

    def checked(self, observation: Mapping[str, Tensor], batch: int) -> dict[str, Tensor]:
        """Check an observation {key: [batch, n_obs_steps, *shape]} and move it to the device; raises ValueError."""
        checked = checked_observation(observation, self.config.observations, (batch, self.config.window.n_obs_steps))
        return {key: value.to(self.device) for key, value in checked.items()}

    def check_fitted(self) -> None:
        """Raise ValueError unless all normalisation statistics are present."""
        if self._is_fitted:
            return
        normalizers = {**self._observation_normalizers(), "action": self.codec}
        if missing := [key for key, one in normalizers.items() if not one.is_fitted]:
            raise ValueError(f"policy: no normalisation statistics for {', '.join(missing)}; call fit first")
        self._is_fitted = True
