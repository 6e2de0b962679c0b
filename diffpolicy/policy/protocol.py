"""What controller, rollout, trainer and checkpoints ask of a policy; `DiffusionPolicy` is one."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from diffpolicy.codecs.codec import Codec, Samples
from diffpolicy.diffusion.objectives.objective import WHOLE, Part
from diffpolicy.policy.plan_projection import Constrain, Projection
from diffpolicy.policy.sampling import ActionChunk
from diffpolicy.policy.settings import PolicyConfig
from diffpolicy.system.tables import Choice


class Policy(Protocol):
    """p(actions | observations): an `nn.Module` that plans chunks of actions and can be trained to.

    Attributes:
        config: window, observations, action_dim and all else besides the weights.
        metadata: what the trainer writes beside the policy into its checkpoint (task, step, ...).
        network: what `trainer.compile` compiles.
    """

    config: PolicyConfig
    metadata: dict[str, Any]
    network: nn.Module
    codec: Codec

    @property
    def device(self) -> torch.device: ...

    def fit(self, observations: Mapping[str, Samples], actions: Samples) -> None:
        """Take the statistics of all demonstrations: {key: [rows, features]} and [rows, action]."""
        ...

    def loss(
        self,
        observations: Mapping[str, Tensor],
        actions: Tensor,
        generator: torch.Generator,
        part: Part = WHOLE,
        step: int = 0,
    ) -> Tensor:
        """The training loss of a batch, a scalar, at optimiser step `step`."""
        ...

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Optimiser groups, as `Objective.parameter_groups`."""
        ...

    def stepped(self, step: int) -> None:
        """Called after optimiser step `step`."""
        ...

    def sampler(self, choice: Choice = "ddim", steps: int | None = None) -> Any:
        """How chunks are drawn; its length is the number of evaluations of the network."""
        ...

    def guide(self, config: Any) -> Any:
        """What steers the samples; None for nothing."""
        ...

    def predict_action_chunk(
        self,
        observation: Mapping[str, Tensor],
        generators: Sequence[torch.Generator],
        sampler: Any = None,
        constrain: Constrain | Projection | None = None,
        guide: Any = None,
    ) -> ActionChunk:
        """A plan for every observation of the batch, with a generator each."""
        ...

    def acting_state(self) -> dict[str, Tensor]:
        """The part of `state_dict` that is needed to act."""
        ...

    def check_fitted(self) -> None:
        """Raise ValueError unless there are statistics of all that is normalised."""
        ...

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors into a new folder."""
        ...

    # Of nn.Module, which a Protocol cannot inherit from:
    def parameters(self) -> Any: ...
    def named_parameters(self) -> Any: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> Any: ...
    def to(self, device: Any) -> Any: ...
    def eval(self) -> Any: ...
