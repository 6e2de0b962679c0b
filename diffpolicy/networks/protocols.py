"""What the policy asks of its networks."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from diffpolicy.networks.condition import Condition, ConditionShape


class Encoder(Protocol):
    """Observations of a window -> what the backbone is conditioned on. An `nn.Module`."""

    @property
    def output(self) -> ConditionShape:
        """What it gives."""
        ...

    def __call__(self, observation: Mapping[str, Tensor], /) -> Condition:
        """{key: [batch, n_obs_steps, *shape]}, vectors normalised, images as uint8."""
        ...


Time = float | Tensor
"""Of the whole batch; a tensor [horizon] where waypoints have levels of their own."""


class AtCondition(Protocol):
    """A backbone at one condition: x [batch, horizon, features] and the times of the whole batch -> like x."""

    def __call__(self, x: Tensor, time: Time, stop: Time | None = None, /) -> Tensor: ...


class Backbone(Protocol):
    """The denoising network. An `nn.Module`.

    Attributes:
        reads: the fields of the condition that it takes, in the order of its further arguments.
    """

    reads: tuple[str, ...]

    def __call__(self, x: Tensor, time: Tensor, /, *fields: Tensor) -> Tensor:
        """x [batch, horizon, features], time [batch], then the fields of `reads`.

        A network that sees a level of each waypoint takes time [batch, horizon], too. One that learned to see the time
        at which a step stops takes that time [batch] last.
        """
        ...

    def at_condition(self, condition: Condition, times: Sequence[Time], horizon: int) -> AtCondition:
        """It at one condition, in its fastest form for these times; `plain` where it has only one form."""
        ...

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Optimiser groups: `params`, and the settings of AdamW that differ from the trainer's."""
        ...


def plain(network: Backbone, condition: Condition) -> AtCondition:
    """`network` called as it is."""
    fields = condition.fields(network.reads)

    def at(x: Tensor, time: Time, stop: Time | None = None) -> Tensor:
        now, *then = [_of_batch(one, x) for one in (time, stop) if one is not None]
        return network(x, now, *fields, *then)

    return at


def _of_batch(time: Time, x: Tensor) -> Tensor:
    if isinstance(time, Tensor):
        return time.to(x.device, torch.float32).expand(len(x), -1)
    return x.new_full((len(x),), time, dtype=torch.float32)
