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

from diffpolicy.codecs.codec import Codec, Samples
from diffpolicy.codecs.normalizer import Normalizer
from diffpolicy.diffusion.guidance import Guide, build_guide
from diffpolicy.diffusion.objectives.objective import WHOLE, ConditionedNetwork, Objective, Part, shared_draws
from diffpolicy.diffusion.reverse import Denoise
from diffpolicy.diffusion.samplers.settings import GuidanceConfig
from diffpolicy.diffusion.samplers.table import StepTable
from diffpolicy.networks.condition import Condition
from diffpolicy.networks.protocols import Encoder
from diffpolicy.policy import build
from diffpolicy.policy.observations import checked_observation
from diffpolicy.policy.plan_projection import Constrain, PlanProjection, Projection
from diffpolicy.policy.pretrained import read_pretrained, write_pretrained
from diffpolicy.policy.sampling import ActionChunk, replayed, sampled
from diffpolicy.policy.settings import PolicyConfig
from diffpolicy.system.replay import Replays
from diffpolicy.system.tables import Choice, settings_of


class DiffusionPolicy(nn.Module):
    """p(actions | observations), learned by denoising (Chi et al. 2023).

    Attributes:
        config: everything besides the weights.
        metadata: what the trainer wrote beside the policy into its checkpoint (task, step, ...).
    """

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__()
        self.config = config = build.resolved(config)
        self.metadata: dict[str, Any] = {}
        self.codec: Codec = build.build_codec(config)
        self.encoder: Encoder = build.build_encoder(config)
        self.objective: Objective = build.build_objective(config.diffusion)
        self.null_condition = self.encoder.output.null() if self.objective.condition_dropout > 0 else nn.ParameterDict()
        self._encoded_shape = self.codec.encoded_shape(config.window.horizon)
        self.network = build.build_network(config, self._encoded_shape, self.encoder.output)
        self.objective.attach(self.network)
        self._vectors = sorted(key for key, spec in config.observations.items() if spec.kind == "vector")
        sizes = [config.observations[key].features for key in self._vectors]
        self.normalizers = nn.ModuleList(Normalizer(size, config.normalizer) for size in sizes)
        self._is_fitted = False
        self._replays: Replays | None = None

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @property
    def has_null_condition(self) -> bool:
        """Whether it was trained to do without observations, too."""
        return len(self.null_condition) > 0

    def sampler(self, choice: Choice = "ddim", steps: int | None = None) -> build.Sampler:
        """A sampler for this policy's schedule: a name, a mapping with a name, or settings such as `DdimConfig`.

        Args:
            steps: in place of the settings' own.

        Raises:
            ValueError: an unknown sampler or setting, or one that does not fit the schedule.
        """
        settings = settings_of(build.SAMPLERS, "sampler", choice)
        if steps is not None:
            settings = dataclasses.replace(settings, steps=steps)
        return build.build_sampler(self.objective.schedule, settings)

    def guide(self, config: GuidanceConfig) -> Guide | None:
        """The guidance of these settings, None where they ask for none.

        Raises:
            ValueError: a number out of its range; classifier-free guidance of a policy trained without dropout of
                the condition.
        """
        if config.weight != 0.0 and not self.has_null_condition:
            raise ValueError(
                f"guidance: weight {config.weight} needs a policy trained with diffusion.condition_dropout above 0 "
                "(typically 0.1), which learns a null condition; this one was trained without"
            )
        if config.threshold != 1.0 and self.codec.limits != (-1.0, 1.0):
            raise ValueError(
                f"guidance: threshold {config.threshold} needs actions normalised to [-1, 1], data.normalizer=limits"
            )
        return build_guide(config)

    def capture(self) -> None:
        """From now on replay the reverse loop on a GPU, the safety projection included, as one CUDA graph.

        It is captured at the first chunk of its kind (batch size, sampler, safety); weights may change later. What
        cannot be captured runs call by call as before: a guide, a constraint of your own, a sampler of diffusers,
        autocast, a CPU. No kernels are compiled; `network.compile()` does that. Called again, it forgets what was
        captured.
        """
        self._replays = Replays()

    def fit(self, observations: Mapping[str, Samples], actions: Samples) -> None:
        """Take the statistics of all demonstrations: {key: [rows, features]} and [rows, A]; images need none."""
        for key, normalizer in self._observation_normalizers().items():
            normalizer.fit(observations[key])
        self.codec.fit(actions)

    def loss(
        self,
        observations: Mapping[str, Tensor],
        actions: Tensor,
        generator: torch.Generator,
        part: Part = WHOLE,
        step: int = 0,
    ) -> Tensor:
        """The training loss of a batch, a scalar.

        Args:
            observations: {key: [B, n_obs_steps, *shape]}, physical units.
            actions: [B, H, A], physical units; the first is simultaneous with the first observation.
            generator: of levels and noise, on the policy's device; those of a part are cut from those of the whole.
            step: of the optimiser, for objectives that change as training goes on.
        """
        self.check_fitted()
        batch = self.objective.draw(self.codec.encode(actions), generator, part)
        condition = self.condition(observations)
        if self.has_null_condition:
            total, rows = shared_draws(part, len(actions))
            chance = torch.rand(total, generator=generator, device=actions.device)[rows]
            null = Condition.null(self.null_condition, len(actions))
            condition = condition.mixed(chance < self.objective.condition_dropout, null)
        network = ConditionedNetwork(self.network, condition.fields(self.network.reads))
        return self.objective.loss(network, batch, step)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Optimiser groups: of all that acts, then of what the objective trains besides."""
        first, *others = self.network.parameter_groups()
        besides = [self.null_condition, self.encoder, self.codec]
        own = [parameter for module in besides for parameter in module.parameters()]
        return [{**first, "params": [*own, *first["params"]]}, *others, *self.objective.parameter_groups()]

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
            generators: one per row of the batch, on the CPU: a row's noise does not depend on its neighbours.
            sampler: from `sampler`; DDIM with 10 steps by default.
            constrain: applied to every clean estimate in physical units, and once more to the plan that is
                returned; waypoints before the present pass unchanged. A function (plan, row), or a `Projection`,
                which is also told the step.
            guide: wraps the denoiser, on encoded actions; from `guide`, or your own.

        Raises:
            ValueError: an observation that is missing, unknown, of the wrong shape or not finite; a number of
                generators other than B; a clean estimate or plan that is not finite.
        """
        self.check_fitted()
        observation = self.checked(observation, len(generators))
        sampler = sampler or self.sampler()
        present, window = self.config.window.n_obs_steps - 1, self.config.window
        projection = PlanProjection(self.codec, present, constrain)
        with torch.inference_mode(guide is None), torch.no_grad():  # a guide may ask for gradients
            shape = (len(sampler) + 1, *self._encoded_shape)
            noise = torch.stack([torch.randn(shape, generator=each) for each in generators], dim=1).to(self.device)
            if self._replays and isinstance(sampler, StepTable) and guide is None and projection.is_replayable:
                denoiser = functools.partial(self._denoiser, guide=None, sampler=sampler)
                denoised = replayed(self._replays, self, denoiser, observation, sampler, noise, projection)
            else:
                denoised = sampled(self._denoiser(observation, guide, sampler), sampler, noise, projection)
            plan = projection.finish(denoised, sampler.rows[-1], len(sampler))
        return ActionChunk(plan[:, present : present + window.n_action_steps], plan)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors into a new folder."""
        write_pretrained(self, folder)

    def acting_state(self) -> dict[str, Tensor]:
        """The part of `state_dict` that is needed to act: all but what only training needs."""
        return {name: value for name, value in self.state_dict().items() if not name.startswith("objective.")}

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str | torch.device = "cpu") -> Self:
        """Load a checkpoint folder, or a link to one, and verify it; ready to act.

        Raises:
            FileNotFoundError: no checkpoint there.
            ValueError: damaged, of another kind of policy, or tensors missing, unknown or of the wrong shape.
        """
        return read_pretrained(folder, {"diffusion": cls}).to(device).eval()

    def _observation_normalizers(self) -> dict[str, Normalizer]:
        pairs = zip(self._vectors, self.normalizers, strict=True)
        return {key: module for key, module in pairs if isinstance(module, Normalizer)}

    def condition(self, observations: Mapping[str, Tensor]) -> Condition:
        """What the network is conditioned on, from checked observations."""
        normalizers = self._observation_normalizers()
        normalized = {key: normalizer.encode(observations[key]) for key, normalizer in normalizers.items()}
        return self.encoder({**observations, **normalized})

    def denoiser_at(self, condition: Condition, times: Sequence[float] = ()) -> Denoise:
        """The clean estimate at a condition; faster at `times` that are known beforehand."""
        return self.objective.denoiser(self.network.at_condition(condition, times, self._encoded_shape[0]))

    def _denoiser(self, observation: Mapping[str, Tensor], guide: Guide | None, sampler: build.Sampler) -> Denoise:
        times = [row.time for row in sampler.rows]
        denoise = self.denoiser_at(self.condition(observation), times)
        if guide is None:
            return denoise
        null = Condition.null(self.null_condition, len(next(iter(observation.values()))))
        return guide(denoise, self.denoiser_at(null, times) if self.has_null_condition else None)

    def checked(self, observation: Mapping[str, Tensor], batch: int) -> dict[str, Tensor]:
        """The observation {key: [batch, n_obs_steps, *shape]} on the policy's device; ValueError where it is wrong."""
        checked = checked_observation(observation, self.config.observations, (batch, self.config.window.n_obs_steps))
        return {key: value.to(self.device) for key, value in checked.items()}

    def check_fitted(self) -> None:
        """Raise ValueError unless there are statistics of all that is normalised."""
        if self._is_fitted:
            return
        normalizers = {**self._observation_normalizers(), "action": self.codec}
        missing = [key for key, normalizer in normalizers.items() if not normalizer.is_fitted]
        if missing:
            raise ValueError(f"policy: no normalisation statistics for {', '.join(missing)}; call fit first")
        self._is_fitted = True
