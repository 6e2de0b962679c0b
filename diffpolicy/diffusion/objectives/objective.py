"""What the trainer and the policy ask of a training objective; denoising is one of several."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from diffpolicy.diffusion.reverse import Denoise
from diffpolicy.diffusion.samplers.table import Number
from diffpolicy.diffusion.schedule import Schedule

Part = tuple[int, int]
"""(index, count): a batch is one of `count` equal parts of a larger one, for all of which randomness is drawn."""

WHOLE: Part = (0, 1)


@dataclass(frozen=True)
class ConditionedNetwork:
    """A network at the condition of a batch in training: x [B, ...], time [B] and, if it sees one, stop time [B]."""

    network: Callable[..., Tensor]
    fields: Sequence[Tensor]

    def __call__(self, x: Tensor, time: Tensor, *stop: Tensor) -> Tensor:
        return self.network(x, time, *self.fields, *stop)

    def of(self, other: Callable[..., Tensor]) -> "ConditionedNetwork":
        """Another network, such as an averaged target, at the same condition."""
        return ConditionedNetwork(other, self.fields)


class Conditioned(Protocol):
    """A network at one condition, while it samples: x [B, ...], time and stop time of the whole batch -> like x."""

    def __call__(self, x: Tensor, time: Number, stop: Number | None = None, /) -> Tensor: ...


class Objective(Protocol):
    """How a network is trained, and what its output means. An `nn.Module`.

    What it trains besides the network, an averaged target, a teacher, step counters: all are parameters and buffers of
    the module, so that they move with the policy and are part of the training state. A checkpoint to act with leaves
    them out.
    """

    @property
    def schedule(self) -> Schedule:
        """The levels on which the network is trained."""
        ...

    @property
    def condition_dropout(self) -> float:
        """The share of windows whose condition is replaced by a learned null condition."""
        ...

    def attach(self, network: nn.Module) -> None:
        """Called once, when the network is made: targets are copied from it here."""
        ...

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Optimiser groups of what it trains besides the network: `params`, and settings of AdamW.

        `lr_scale`, if there, multiplies the learning rate.
        """
        ...

    def draw(self, clean: Tensor, generator: torch.Generator, part: Part = WHOLE) -> Any:
        """The batch that `loss` is of: encoded trajectories `clean` [B, ...] and all that is random besides.

        Args:
            generator: on the device of `clean`; draws of a part are cut from those of the whole.
        """
        ...

    def loss(self, network: ConditionedNetwork, batch: Any, step: int) -> Tensor:
        """The training loss, a scalar, of what `draw` gave at optimiser step `step`."""
        ...

    def stepped(self, network: nn.Module, step: int) -> None:
        """Called after optimiser step `step`: averaged targets follow the network here."""
        ...

    def denoiser(self, network: Conditioned) -> Denoise:
        """The clean estimate of a noisy x at a row's level."""
        ...


def shared_draws(part: Part, rows: int) -> tuple[int, slice]:
    """How many rows all parts draw together, and which of them are this part's."""
    index, count = part
    return rows * count, slice(index * rows, (index + 1) * rows)
