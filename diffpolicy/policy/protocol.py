"""The interface that controller, rollout, trainer and checkpoints need from a policy, such as `DiffusionPolicy`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from diffpolicy.codecs.codec import Codec, DataArray
from diffpolicy.policy.plan_projection import Constrain, Projection
from diffpolicy.policy.sampling import ActionChunk, Sampling
from diffpolicy.policy.settings import PolicyConfig
from diffpolicy.system.parts import WHOLE, Part
from diffpolicy.system.tables import Choice


class Policy(Protocol):
    """p(actions | observations): an `nn.Module` that plans chunks of actions and can be trained.

    Attributes:
        config: window, observations, action_dim and all other settings.
        metadata: what the trainer saves with the policy in a checkpoint (task, step, ...).
        network: the module that `trainer.compile` compiles.
        codec: the codec of the actions.
    """

    config: PolicyConfig
    metadata: dict[str, Any]
    network: nn.Module
    codec: Codec

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        ...

    def fit(self, observations: Mapping[str, DataArray], actions: DataArray) -> None:
        """Compute the normalisation statistics of all demonstrations: {key: [rows, features]} and [rows, action]."""
        ...

    def loss(
        self,
        observations: Mapping[str, Tensor],
        actions: Tensor,
        generator: torch.Generator,
        part: Part = WHOLE,
        step: int | Tensor = 0,
        counts: Tensor | None = None,
    ) -> Tensor:
        """The training loss of a batch, a scalar, at optimiser step `step`; see `Objective.loss`."""
        ...

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Optimiser groups, as in `Objective.parameter_groups`."""
        ...

    def stepped(self, step: int) -> None:
        """Called after optimiser step `step`."""
        ...

    def sampler(self, choice: Choice = "auto", steps: int | None = None) -> Any:
        """Build the sampler that draws chunks; its length is the number of network evaluations."""
        ...

    def sampling(self, choice: Choice = "auto", steps: int | None = None) -> Sampling:
        """The sampler, and the guide that its settings ask for.

        Raises:
            ValueError: the choice is unknown or does not fit this policy.
        """
        ...

    def predict_action_chunk(
        self,
        observation: Mapping[str, Tensor],
        generators: Sequence[torch.Generator],
        sampler: Any = None,
        constrain: Constrain | Projection | None = None,
        guide: Any = None,
        previous: Tensor | None = None,
    ) -> ActionChunk:
        """Sample a plan for every observation {key: [batch, n_obs_steps, *shape]}, with one generator each.

        `previous` [batch, horizon, action] is given only with the sampler `warm` of a `Sampling`.
        """
        ...

    def acting_state(self) -> dict[str, Tensor]:
        """The part of `state_dict` that is needed to act."""
        ...

    def check_fitted(self) -> None:
        """Raise ValueError unless all normalisation statistics are present."""
        ...

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors into a new folder; raises FileExistsError if it exists."""
        ...

    # Methods of nn.Module, from which a Protocol cannot inherit:
    def parameters(self) -> Any: ...
    def buffers(self) -> Any: ...
    def named_parameters(self) -> Any: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> Any: ...
    def to(self, device: Any) -> Any: ...
    def eval(self) -> Any: ...
