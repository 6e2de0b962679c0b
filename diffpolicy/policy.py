"""The diffusion policy: observations in, a chunk of actions out, both in physical units. It keeps no state
between calls; `PolicyController` does.

Shape legend: B batch, H horizon, A action.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from diffpolicy import checkpoint
from diffpolicy.build import build_network, build_objective, build_sampler
from diffpolicy.config import DiffusionConfig, ModelConfig, PolicyConfig, SamplerConfig, WindowConfig
from diffpolicy.constraints.projection import clip
from diffpolicy.data.normalizer import Normalizer
from diffpolicy.diffusion.reverse import Project, reverse
from diffpolicy.diffusion.samplers.table import Row, StepTable
from diffpolicy.networks.obs_encoder import LowDimEncoder

Constrain = Callable[[Tensor, Row], Tensor]
"""(plan [B, H, A] in physical units, row) -> the plan to go on with, same shape."""


@dataclasses.dataclass(frozen=True)
class ActionChunk:
    """What the policy proposes, in physical units.

    Attributes:
        actions: to be executed, [B, n_action_steps, A].
        plan: the whole horizon [B, H, A]; its index n_obs_steps - 1 is the present.
    """

    actions: Tensor
    plan: Tensor


class DiffusionPolicy(nn.Module):
    """p(actions | observations), learned by denoising (Chi et al. 2023).

    Attributes:
        config: everything besides the weights.
        metadata: what the trainer wrote beside the policy into its checkpoint (task, step, ...).
    """

    levels: Tensor  # [levels, 6], what the loss needs of every noise level

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__()
        self.config = config
        self.metadata: dict[str, Any] = {}
        self.objective = build_objective(config.diffusion)
        self.encoder = LowDimEncoder(config.observations, config.window.n_obs_steps)
        self.network = build_network(config, self.encoder.condition_dim)
        self.normalizers = nn.ModuleList(Normalizer(config.observations[key]) for key in self.encoder.keys)
        self.action_normalizer = Normalizer(config.action_dim)
        self.register_buffer("levels", self.objective.table(), persistent=False)
        self._is_fitted = False

    @property
    def device(self) -> torch.device:
        return self.action_normalizer.scale.device

    def sampler(self, config: SamplerConfig) -> StepTable:
        """A sampler for this policy's schedule, by name."""
        return build_sampler(self.objective.schedule, config)

    def fit_normalizers(self, observations: Mapping[str, Tensor], actions: Tensor) -> None:
        """Take the statistics of all demonstrations: {key: [rows, dim]} and [rows, A]."""
        kind = self.config.normalizer
        for key, normalizer in self._observation_normalizers().items():
            normalizer.fit(observations[key], kind)
        self.action_normalizer.fit(actions, kind)

    def loss(self, observations: Mapping[str, Tensor], actions: Tensor, generator: torch.Generator) -> Tensor:
        """The training loss of a batch, a scalar.

        Args:
            observations: {key: [B, n_obs_steps, dim]}, physical units.
            actions: [B, H, A], physical units; the first is simultaneous with the first observation.
            generator: of levels and noise, on the policy's device.
        """
        self._check_fitted()
        clean = self.action_normalizer(actions)
        level = torch.randint(len(self.levels), (len(clean),), generator=generator, device=clean.device)
        noise = torch.randn(clean.shape, generator=generator, device=clean.device)
        return self.objective.loss(self.network, self.levels, clean, noise, level, self._encode(observations))

    @torch.inference_mode()
    def predict_action_chunk(
        self,
        observation: Mapping[str, Tensor],
        generators: Sequence[torch.Generator],
        sampler: StepTable | None = None,
        constrain: Constrain | None = None,
    ) -> ActionChunk:
        """Sample a plan for every observation of the batch.

        Args:
            observation: {key: [B, n_obs_steps, dim]}, physical units; tensors or arrays.
            generators: one per row of the batch, on the CPU: a row's noise does not depend on its neighbours.
            sampler: from `sampler`; DDIM with 10 steps by default.
            constrain: applied to every clean estimate in physical units, and once more to the plan that is
                returned; waypoints before the present pass unchanged.

        Raises:
            ValueError: an observation that is missing, unknown, of the wrong shape or not finite; a number of
                generators other than B; a clean estimate or plan that is not finite.
        """
        self._check_fitted()
        observation = self._checked_observation(observation, len(generators))
        sampler = sampler or self.sampler(SamplerConfig())
        condition = self._encode(observation)
        shape = (len(sampler) + 1, self.config.window.horizon, self.config.action_dim)
        noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators], dim=1)
        denoise = self.objective.denoiser(self.network, condition)
        finite: list[Tensor] = []  # of every estimate before the constraint, which could hide a NaN
        project = self._projection(constrain, finite)
        plan = self.action_normalizer.inverse(reverse(denoise, sampler, noise.to(self.device), project))
        if constrain is not None:
            plan = self._constrain(constrain, plan, sampler.rows[-1])
        if not bool(torch.stack([*finite, plan.isfinite().all()]).all()):
            raise ValueError("policy: the plan has NaN or infinite values; the weights or the constraint are broken")
        present = self.config.window.n_obs_steps - 1
        return ActionChunk(plan[:, present : present + self.config.window.n_action_steps], plan)

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
        policy = cls(_policy_config(content["policy"]))
        policy.metadata = {k: v for k, v in content.items() if k not in ("policy", "sha256", "format_version")}
        tensors = checkpoint.read_tensors(path, "model")
        check_tensors(f"checkpoint: {path}", tensors, policy.state_dict())
        policy.load_state_dict(tensors)
        policy._check_fitted()
        return policy.to(device).eval()

    def _observation_normalizers(self) -> dict[str, Normalizer]:
        modules = zip(self.encoder.keys, self.normalizers, strict=True)
        return {key: module for key, module in modules if isinstance(module, Normalizer)}

    def _encode(self, observations: Mapping[str, Tensor]) -> Tensor:
        normalizers = self._observation_normalizers()
        return self.encoder({key: normalizers[key](observations[key]) for key in normalizers})

    def _projection(self, constrain: Constrain | None, finite: list[Tensor]) -> Project:
        """To the data's limits, then to what the user demands, so that the demand is met last."""
        clip_to_data = clip(-1.0, 1.0) if self.config.normalizer == "limits" else None

        def project(clean: Tensor, row: Row) -> Tensor:
            finite.append(clean.isfinite().all())
            if clip_to_data is not None:
                clean = clip_to_data(clean, row)
            if constrain is None:
                return clean
            plan = self._constrain(constrain, self.action_normalizer.inverse(clean), row)
            return self._keep_past(clean, self.action_normalizer(plan))

        return project

    def _constrain(self, constrain: Constrain, plan: Tensor, row: Row) -> Tensor:
        """What the user's function makes of the plan from the present on; it may work in place."""
        constrained = constrain(plan.clone(), row)
        if constrained.shape != plan.shape:
            raise ValueError(f"constraint: returned shape {list(constrained.shape)}, expected {list(plan.shape)}")
        return self._keep_past(plan, constrained)

    def _keep_past(self, before: Tensor, after: Tensor) -> Tensor:
        present = self.config.window.n_obs_steps - 1
        return torch.cat([before[:, :present], after[:, present:]], dim=1)

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

    def _checked_observation(self, observation: Mapping[str, Tensor], batch: int) -> dict[str, Tensor]:
        """The observation as float32 on the policy's device."""
        observation = {key: torch.as_tensor(value, dtype=torch.float32) for key, value in observation.items()}
        expected = self.config.observations
        if set(observation) != set(expected):
            raise ValueError(f"observation: keys are {sorted(observation)}, expected {sorted(expected)}")
        for key, dim in expected.items():
            shape = [batch, self.config.window.n_obs_steps, dim]
            if list(observation[key].shape) != shape:
                raise ValueError(
                    f"observation: {key} has shape {list(observation[key].shape)}, expected {shape} "
                    "(one row per generator, n_obs_steps, features)"
                )
            if not bool(observation[key].isfinite().all()):
                raise ValueError(f"observation: {key} has NaN or infinite values")
        return {key: value.to(self.device) for key, value in observation.items()}


def _policy_config(content: Mapping[str, Any]) -> PolicyConfig:
    nested = {"window": WindowConfig, "model": ModelConfig, "diffusion": DiffusionConfig}
    try:
        return PolicyConfig(**{k: nested[k](**v) if k in nested else v for k, v in content.items()})
    except TypeError as error:
        raise ValueError(f"checkpoint: settings do not fit this version of diffpolicy: {error}") from error


def check_tensors(where: str, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless the two have the same names, shapes and dtypes."""
    missing, extra = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if missing or extra:
        raise ValueError(f"{where}: missing tensors {missing}, unknown tensors {extra}")
    for name, tensor in expected.items():
        if found[name].shape != tensor.shape:
            raise ValueError(f"{where}: {name} has shape {list(found[name].shape)}, expected {list(tensor.shape)}")
        if found[name].dtype != tensor.dtype:
            raise ValueError(f"{where}: {name} is {found[name].dtype}, expected {tensor.dtype}")
