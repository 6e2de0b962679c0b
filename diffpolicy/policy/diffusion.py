"""The diffusion policy: observations in, a chunk of actions out; `PolicyController` keeps the state between ticks.

Shape legend: B batch, H horizon, A action.
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from diffpolicy.codecs.codec import Codec, DataArray, LearnedCodec
from diffpolicy.diffusion.guidance import Guide
from diffpolicy.diffusion.objectives.objective import ConditionedNetwork, Objective
from diffpolicy.diffusion.reverse import Denoise
from diffpolicy.diffusion.samplers.settings import GuidanceConfig
from diffpolicy.diffusion.samplers.table import Row
from diffpolicy.networks.condition import Condition
from diffpolicy.networks.layers.decay import joined
from diffpolicy.networks.protocols import Encoder
from diffpolicy.policy import build
from diffpolicy.policy.auxiliary import Auxiliary, encoded
from diffpolicy.policy.guides import check_guide, guide_for, guided
from diffpolicy.policy.normalizers import ObservationNormalizers
from diffpolicy.policy.objective_choices import build_objective
from diffpolicy.policy.observations import checked_observation
from diffpolicy.policy.plan_projection import Constrain, PlanProjection, Projection
from diffpolicy.policy.precision import check_precision, like_parameters
from diffpolicy.policy.pretrained import push_to_hub, read_pretrained, write_pretrained
from diffpolicy.policy.sampler_choices import AUTO, Given, Sampler, sampler_settings
from diffpolicy.policy.sampling import ActionChunk, Sampling, drawn, drawn_noise, sampling_of
from diffpolicy.policy.settings import PolicyConfig
from diffpolicy.system.parts import WHOLE, Part
from diffpolicy.system.replay import Replays
from diffpolicy.system.tables import Choice


class DiffusionPolicy(nn.Module):
    """p(actions | observations), learned by denoising (Chi et al. 2023).

    Attributes:
        config: all settings, with the defaults filled in.
        metadata: what the trainer saves with the policy in a checkpoint (task, step, ...).
        auxiliary: what the encoder is taught besides in training, or None.
    """

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__()
        self.config = config = build.resolved(config)
        self.metadata: dict[str, Any] = {}
        self.codec: Codec = build.build_codec(config)
        self.encoder: Encoder = build.build_encoder(config)
        self.objective: Objective = build_objective(config.diffusion)
        self.null_condition = nn.ParameterDict()
        self._encoded_shape = self.codec.encoded_shape(config.window.horizon)
        self.network = build.build_network(config, self._encoded_shape, self.encoder.output, self.objective)
        if self.objective.condition_dropout > 0:
            self.null_condition.update(self.encoder.output.null(self.network.reads))
        self.objective.attach(self.network)
        self.normalizers = ObservationNormalizers(config)
        self.auxiliary: Auxiliary | None = None
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

    def sampler(self, choice: Choice = AUTO, steps: int | None = None) -> Sampler:
        """A sampler for this policy's schedule: a name, a mapping with a name, or settings such as `DdimConfig`.

        "auto" is the sampler that its objective prefers. `steps` overrides the number in the settings. Raises
        ValueError if the choice is unknown or does not fit.
        """
        return self.sampling(choice, steps).sampler

    def sampling(self, choice: Choice = AUTO, steps: int | None = None) -> Sampling:
        """The sampler, and the guide that its settings ask for. Raises ValueError as `sampler` and `guide`."""
        settings = sampler_settings(choice, steps, self.objective.sampler)
        given = Given(self._encoded_shape[0], self.metadata.get("step_grids"))
        return sampling_of(self.objective, settings, self.guide(settings.guidance), given)

    def guide(self, config: GuidanceConfig) -> Guide | None:
        """The guidance of these settings, or None; raises ValueError if the policy was not trained for it."""
        return guide_for(config, self.has_null_condition, self.codec)

    def capture(self) -> None:
        """Replay the reverse loop on a GPU as one CUDA graph from now on, including the safety projection.

        The graph is captured at the first chunk of each kind (batch size, sampler, safety). Weights may change later.
        A guide, your own constraint, a diffusers sampler, autocast and a CPU cannot be captured; the loop then runs
        call by call. To compile kernels use `network.compile()`. Calling this again discards all captured graphs.
        """
        self._replays = Replays()

    def fit(self, observations: Mapping[str, DataArray], actions: DataArray) -> None:
        """Compute the normalisation statistics of all demonstrations: {key: [rows, features]} and [rows, A].

        A `LearnedCodec`, such as `vae`, is trained with `codec.learn` afterwards. Raises ValueError if data lack a key
        or have no rows, the wrong shape or values that are not finite.
        """
        self.normalizers.fit(observations)
        self.codec.fit(actions)

    def loss(
        self,
        observations: Mapping[str, Tensor],
        actions: Tensor,
        generator: torch.Generator,
        part: Part = WHOLE,
        step: int | Tensor = 0,
        counts: Tensor | None = None,
        auxiliary: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """The training loss of a batch, a scalar. Observations are augmented in training mode (`nn.Module.train`).

        Args:
            observations: {key: [B, n_obs_steps, *shape]}, physical units.
            actions: [B, H, A], physical units; the first one belongs to the first observation.
            generator: draws levels, noise and what augments the observations, on the policy's device.
            part: which part of a larger batch this is; its random numbers are a slice of those of the whole.
            step: optimiser step, for objectives that change during training.
            counts: [B, H], by which each action's error is multiplied.
            auxiliary: targets of `self.auxiliary`, {name: [B, n_obs_steps, D]}, physical units.
        """
        self.check_fitted()
        batch = self.objective.draw(self.codec.encode(like_parameters(actions, self.network)), generator, part)
        seen = self.normalizers.encode(observations, self.network)
        seen = self.encoder.augmented(seen, generator, part) if self.training else seen
        condition, taught = encoded(self.encoder, seen, self.auxiliary, auxiliary)
        condition = condition.only(self.network.reads)
        if self.has_null_condition:
            condition = condition.dropped(self.objective.condition_dropout, self.null_condition, generator, part)
        network = ConditionedNetwork(self.network, condition.fields(self.network.reads))
        loss = self.objective.loss(network, batch, step, *([] if counts is None else [counts]))
        return loss if taught is None else loss + taught

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Optimiser groups of the parameters that are needed to act, then of those that only training needs."""
        besides: Any = [self.null_condition, self.encoder, self.codec]
        taught = [] if self.auxiliary is None else [{"params": list(self.auxiliary.parameters())}]
        return [*joined(self.network.parameter_groups(), besides), *self.objective.parameter_groups(), *taught]

    def stepped(self, step: int) -> None:
        """Called after optimiser step `step`."""
        self.objective.stepped(self.network, step)

    def predict_action_chunk(
        self,
        observation: Mapping[str, Tensor],
        generators: Sequence[torch.Generator],
        sampler: Sampler | None = None,
        constrain: Constrain | Projection | None = None,
        guide: Guide | None = None,
        previous: Tensor | None = None,
    ) -> ActionChunk:
        """Sample a plan for every observation of the batch.

        Args:
            observation: {key: [B, n_obs_steps, *shape]}, physical units; tensors or arrays.
            generators: one per row of the batch, on the CPU, so that the noise of a row does not depend on the others.
            sampler: from `sampler`; "auto" by default.
            constrain: applied to every clean estimate in physical units and once more to the returned plan. Waypoints
                before the present are left unchanged. A function (plan, row), or a `Projection`, which also gets the
                step.
            guide: wraps the denoiser, on encoded actions; from `guide`, or your own.
            previous: plans [B, H, A] to start from, physical units, such as the last ones shifted to the present: they
                are noised to the first level of `sampler`, e.g. `sampling(...).warm`. By default, pure noise.

        Raises:
            ValueError: an observation or `previous` is missing, unknown, of the wrong shape or not finite; there are
                not B generators; a clean estimate or the plan is not finite.
        """
        self.check_fitted()
        check_guide(guide, self.codec)
        observation = self.checked(observation, len(generators))
        sampler = sampler or self.sampler()
        present, window = self.config.window.n_obs_steps - 1, self.config.window
        projection = PlanProjection(self.codec, present, constrain)
        with torch.inference_mode(guide is None), torch.no_grad():  # a guide may ask for gradients
            noise = drawn_noise(generators, sampler, self.codec, self.config, self.network, previous)
            denoiser = functools.partial(self._denoiser, guide=guide, sampler=sampler)
            replays = self._replays if guide is None else None
            denoised = drawn(replays, self, denoiser, observation, sampler, noise, projection)
            plan = projection.finish(denoised, sampler.rows[-1], len(sampler))
        return ActionChunk(plan[:, present : present + window.n_action_steps], plan)

    def save_pretrained(self, folder: str | Path, dtype: str = "float32") -> None:
        """Write a checkpoint and a model card into a new folder, in float32 or float16; see `write_pretrained`."""
        write_pretrained(self, folder, dtype)

    push_to_hub = push_to_hub

    def acting_state(self) -> dict[str, Tensor]:
        """The part of `state_dict` that is needed to act, without what only training needs."""
        training = ("objective.", "auxiliary.")
        return {name: value for name, value in self.state_dict().items() if not name.startswith(training)}

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str | torch.device = "cpu") -> Self:
        """Load and verify a checkpoint, ready to act: a folder, on disk or shipped, a link to one, or owner/name on the
        Hugging Face hub.

        Raises FileNotFoundError or, if it is damaged or of another kind, ValueError; others as `read_pretrained`.
        """
        return read_pretrained(folder, {"diffusion": cls}).to(device).eval()

    def condition(self, observations: Mapping[str, Tensor]) -> Condition:
        """Normalise and encode checked observations into those fields of the condition that the network reads."""
        return self.encoder(self.normalizers.encode(observations, self.network)).only(self.network.reads)

    def denoiser_at(self, condition: Condition, rows: Sequence[Row] = ()) -> Denoise:
        """The denoiser at a condition; it is faster at the times of `rows`."""
        stops = [[row.stop for row in rows]] if rows and rows[0].stop is not None else []
        times = [row.time for row in rows]
        return self.objective.denoiser(self.network.at_condition(condition, times, self._encoded_shape[0], *stops))

    def _denoiser(self, observation: Mapping[str, Tensor], guide: Guide | None, sampler: Sampler) -> Denoise:
        denoise = self.denoiser_at(self.condition(observation), sampler.rows)
        if guide is None:
            return denoise
        null = Condition.null(self.null_condition, len(next(iter(observation.values()))))
        return guided(guide, denoise, self.denoiser_at(null, sampler.rows) if self.has_null_condition else None)

    def checked(self, observation: Mapping[str, Tensor], batch: int) -> dict[str, Tensor]:
        """Check an observation {key: [batch, n_obs_steps, *shape]} and move it to the device; raises ValueError."""
        checked = checked_observation(observation, self.config.observations, (batch, self.config.window.n_obs_steps))
        return {key: value.to(self.device) for key, value in checked.items()}

    def check_fitted(self) -> None:
        """Raise ValueError unless all normalisation statistics are present."""
        if self._is_fitted:
            return
        normalizers = {**self.normalizers.by_key(), "action": self.codec}
        if missing := [key for key, one in normalizers.items() if not one.is_fitted]:
            learn = " and codec.learn" if isinstance(self.codec, LearnedCodec) else ""
            raise ValueError(f"policy: no normalisation statistics for {', '.join(missing)}; call fit{learn} first")
        self._is_fitted = True
