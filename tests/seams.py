"""A second, small implementation of every interface; each can train and act, and differs from the first."""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffpolicy.codecs.normalizer import Normalizer
from diffpolicy.diffusion.objectives.denoising import Denoising
from diffpolicy.diffusion.objectives.objective import ConditionedNetwork
from diffpolicy.diffusion.parameterization import CLEAN
from diffpolicy.diffusion.reverse import Denoised, all_finite
from diffpolicy.diffusion.schedules import cosine
from diffpolicy.networks.condition import Condition, ConditionShape
from diffpolicy.networks.encoders.low_dim import LowDimEncoder
from diffpolicy.networks.observation import ObservationSpec
from diffpolicy.networks.protocols import AtCondition, plain
from diffpolicy.policy.build import resolved
from diffpolicy.policy.normalizers import action_normalizer
from diffpolicy.policy.observations import checked_observation
from diffpolicy.policy.plan_projection import PlanProjection
from diffpolicy.policy.pretrained import write_pretrained
from diffpolicy.policy.sampling import ActionChunk, Sampling
from diffpolicy.policy.settings import PolicyConfig


class TokenEncoder(nn.Module):
    """Encodes every observation at every step as a token; images are averaged over blocks of 4 x 4 pixels."""

    features = 16

    def __init__(self, observations: Mapping[str, ObservationSpec], n_obs_steps: int) -> None:
        super().__init__()
        sizes = {key: self._size(spec) for key, spec in sorted(observations.items())}
        self.layers = nn.ModuleDict({key: nn.Linear(size, self.features) for key, size in sizes.items()})
        self.output = ConditionShape(tokens=(n_obs_steps * len(sizes), self.features))

    def forward(self, observation: Mapping[str, Tensor]) -> Condition:
        return Condition(tokens=torch.cat([self._token(key, observation[key]) for key in self.layers], dim=1))

    def augmented(self, observation: Mapping[str, Tensor], generator: torch.Generator, part: Any = (0, 1)) -> Any:
        return observation

    def _size(self, spec: ObservationSpec) -> int:
        return spec.features if spec.kind == "vector" else math.prod(spec.shape) // 16

    def _token(self, key: str, values: Tensor) -> Tensor:
        if values.dtype == torch.uint8:  # [batch, n_obs_steps, height, width, channels]
            pixels = values.flatten(0, 1).movedim(-1, 1).float() / 255.0
            values = F.avg_pool2d(pixels, 4).flatten(1).unflatten(0, values.shape[:2])
        return self.layers[key](values)


class TokenReader(nn.Module):
    """A backbone in which every waypoint attends to the tokens."""

    reads: tuple[str, ...] = ("tokens",)

    def __init__(self, action_dim: int, token_features: int) -> None:
        super().__init__()
        self.into = nn.Linear(action_dim + 2, token_features)
        self.look = nn.MultiheadAttention(token_features, 2, batch_first=True)
        self.out = nn.Sequential(nn.Linear(token_features, 32), nn.Mish(), nn.Linear(32, action_dim))

    @classmethod
    def from_settings(cls, own: Any, encoded_shape: tuple[int, int], condition: ConditionShape) -> "TokenReader":
        _, features = condition.of("tokens")
        return cls(encoded_shape[1], features)

    def forward(self, x: Tensor, time: Tensor, tokens: Tensor) -> Tensor:
        place = torch.linspace(-1.0, 1.0, x.shape[1], device=x.device).expand(len(x), -1)
        level = (time / 100.0 if time.dim() == 2 else (time / 100.0)[:, None]).expand_as(place)
        query = self.into(torch.cat([x, place[..., None], level[..., None]], dim=-1))
        seen, _ = self.look(query, tokens, tokens, need_weights=False)
        return self.out(query + seen)

    def at_condition(self, condition: Condition, times: Sequence[float], horizon: int) -> AtCondition:
        return plain(self, condition)

    def parameter_groups(self) -> list[dict[str, Any]]:
        biases = [parameter for name, parameter in self.named_parameters() if name.endswith("bias")]
        others = [parameter for name, parameter in self.named_parameters() if not name.endswith("bias")]
        return [{"params": others}, {"params": biases, "weight_decay": 0.0}]


class CosineCodec(nn.Module):
    """Encodes normalised actions by an orthonormal DCT-II over the horizon, so that waypoints are not separate."""

    is_invertible = True
    limits = None
    metric = None

    def __init__(self, action_dim: int, horizon: int) -> None:
        super().__init__()
        self.normalizer = Normalizer(action_dim)
        at, k = torch.arange(horizon) + 0.5, torch.arange(horizon)[:, None]
        basis = torch.cos(math.pi / horizon * at * k) * (2.0 / horizon) ** 0.5
        basis[0] /= 2.0**0.5
        self.register_buffer("basis", basis)

    @property
    def is_fitted(self) -> bool:
        return self.normalizer.is_fitted

    def encoded_shape(self, horizon: int) -> tuple[int, int]:
        return self.normalizer.encoded_shape(horizon)

    def fit(self, actions: Any) -> None:
        self.normalizer.fit(actions)

    def encode(self, actions: Tensor) -> Tensor:
        return self.basis @ self.normalizer.encode(actions)

    def decode(self, encoded: Tensor) -> Tensor:
        return self.normalizer.decode(self.basis.mT @ encoded)

    def log_determinant(self, horizon: int) -> Tensor:
        return self.normalizer.log_determinant(horizon)


class WithTarget(Denoising):
    """Denoising that also regresses to a slow average of the network, and counts its steps."""

    steps_done: Tensor

    def __init__(self, own: Any) -> None:
        super().__init__(cosine(100), CLEAN)
        self.bias = nn.Parameter(torch.zeros(()))  # trained in addition to the network
        self.register_buffer("steps_done", torch.zeros((), dtype=torch.long))

    def attach(self, network: nn.Module) -> None:
        self.target = copy.deepcopy(network).requires_grad_(False)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": [self.bias], "lr_scale": 0.1}]

    def loss(self, network: ConditionedNetwork, batch: Any, step: int | Tensor = 0) -> Tensor:
        level = self.table.at(batch.level)
        noisy = level.alpha * batch.clean + level.sigma * batch.noise
        output = network(noisy, level.time.flatten()) + self.bias
        wanted = network.of(self.target)(noisy, level.time.flatten())
        share = 1.0 / (2.0 + step)
        return (output - batch.clean).square().mean() + share * (output - wanted).square().mean()

    def stepped(self, network: nn.Module, step: int) -> None:
        self.steps_done += 1
        with torch.no_grad():
            for mean, parameter in zip(self.target.parameters(), network.parameters(), strict=True):
                mean.lerp_(parameter, 0.5)


class OneEvaluation:
    """The sampler of a policy that draws no noise."""

    rows = (None,)

    def __len__(self) -> int:
        return 1


@dataclass
class OneEvaluationConfig:
    """Settings of a sampler that has none."""

    name: str = "one_evaluation"
    steps: int = 1


class RegressionPolicy(nn.Module):
    """A policy trained by least squares: no noise, no levels, one evaluation."""

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__()
        self.config = resolved(config)
        self.metadata: dict[str, Any] = {}
        self.codec = action_normalizer(config)
        sizes = {key: spec.features for key, spec in sorted(config.observations.items())}
        self.normalizers = nn.ModuleDict({key: Normalizer(size) for key, size in sizes.items()})
        encoder = LowDimEncoder(config.observations, config.window.n_obs_steps)
        (features,) = encoder.output.of("vector")
        self.encoder = encoder
        self.network = nn.Sequential(
            nn.Linear(features, 64), nn.Mish(), nn.Linear(64, config.window.horizon * config.action_dim)
        )

    @property
    def device(self) -> torch.device:
        return self.codec.scale.device

    def fit(self, observations: Mapping[str, Any], actions: Any) -> None:
        for key, normalizer in self.normalizers.items():
            normalizer.fit(observations[key])
        self.codec.fit(actions)

    def check_fitted(self) -> None:
        assert self.codec.is_fitted

    def sampler(self, choice: Any = None, steps: int | None = None) -> OneEvaluation:
        return OneEvaluation()

    def sampling(self, choice: Any = None, steps: int | None = None) -> Sampling:
        return Sampling(OneEvaluation(), None, OneEvaluationConfig())

    def loss(self, observations, actions, generator, part=(0, 1), step=0) -> Tensor:
        return (self._plan(observations) - self.codec.encode(actions)).square().mean()

    def predict_action_chunk(
        self, observation, generators, sampler=None, constrain=None, guide=None, previous=None
    ) -> ActionChunk:
        window = self.config.window
        present = window.n_obs_steps - 1
        seen = checked_observation(observation, self.config.observations, (len(generators), window.n_obs_steps))
        projection = PlanProjection(self.codec, present, constrain)
        with torch.inference_mode():
            clean = self._plan({key: value.to(self.device) for key, value in seen.items()})
            denoised = Denoised(projection.project(clean, None, 0), all_finite([clean]))
            plan = projection.finish(denoised, None, 1)
        return ActionChunk(plan[:, present : present + window.n_action_steps], plan)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.parameters())}]

    def stepped(self, step: int) -> None:
        pass

    def acting_state(self) -> dict[str, Tensor]:
        return self.state_dict()

    def save_pretrained(self, folder) -> None:
        write_pretrained(self, folder)

    def _plan(self, observations: Mapping[str, Tensor]) -> Tensor:
        normalized = {key: normalizer.encode(observations[key]) for key, normalizer in self.normalizers.items()}
        (vector,) = self.encoder(normalized).fields(("vector",))
        return self.network(vector).unflatten(1, (self.config.window.horizon, -1))


class NpzFolder:
    """Episodes as a folder of .npz files: a `DataSource`."""

    def __init__(self, location: str) -> None:
        self.location = location
        files = sorted(Path(location).glob("*.npz"))
        episodes = [dict(np.load(file, allow_pickle=False)) for file in files]
        self._arrays = {key: np.concatenate([one[key] for one in episodes]) for key in episodes[0]}
        self.episode_ends = np.cumsum([len(next(iter(one.values()))) for one in episodes])
        self.n_episodes, self.n_steps, self.keys = len(files), int(self.episode_ends[-1]), list(self._arrays)
        self.specs = {key: (value.shape[1:], value.dtype) for key, value in self._arrays.items()}

    def __getitem__(self, key: str) -> np.ndarray:
        return self._arrays[key]

    def rows(self, key: str, start: int, stop: int) -> np.ndarray:
        return self._arrays[key][start:stop]

    def take(self, key: str, rows: np.ndarray) -> np.ndarray:
        return self._arrays[key][rows]

    def close(self) -> None:
        pass
