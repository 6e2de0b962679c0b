"""The interface that the trainer and the policy need from a training objective, such as `Denoising`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from diffpolicy.diffusion.reverse import Denoise
from diffpolicy.diffusion.samplers.table import Number
from diffpolicy.diffusion.schedule import Schedule
from diffpolicy.system.parts import WHOLE, Part
from diffpolicy.system.tables import Choice


@dataclass(frozen=True)
class ConditionedNetwork:
    """A network with the condition of a training batch fixed.

    It takes x [B, ...], time [B] and, if the network was built for it, the stop time [B]; it returns a tensor like x.
    """

    network: Callable[..., Tensor]
    fields: Sequence[Tensor]

    def __call__(self, x: Tensor, time: Tensor, *stop: Tensor) -> Tensor:
        return self.network(x, time, *self.fields, *stop)

    def of(self, other: Callable[..., Tensor]) -> "ConditionedNetwork":
        """Another network, such as an averaged target network, with the same condition."""
        return ConditionedNetwork(other, self.fields)

    def repeated(self, copies: int) -> "ConditionedNetwork":
        """The same network for a batch that is repeated `copies` times as a whole."""
        fields = [field.repeat(copies, *[1] * (field.dim() - 1)) for field in self.fields]
        return ConditionedNetwork(self.network, fields)


class Conditioned(Protocol):
    """A network with a fixed condition, for sampling: x [B, ...], one time and stop time for the batch -> like x."""

    def __call__(self, x: Tensor, time: Number, stop: Number | None = None, /) -> Tensor: ...


def check_is_one_of(settings: Any, names: Sequence[str], objective: str) -> None:
    """Raise ValueError unless the sampler with these settings is one of `names`, for which the objective trains."""
    if settings.name not in names:
        raise ValueError(
            f"sampler: a policy with diffusion {objective} was not trained for {settings.name}; give "
            f"{' or '.join(f'sampler={name}' for name in names)}"
        )


def check_is_direct(settings: Any, objective: str, most_steps: int = 1, start: float = 0.0) -> None:
    """Raise ValueError unless it is the sampler `direct` with this start and at most so many steps."""
    asked = "sampler=direct" if start == 0.0 else f"sampler=direct sampler.start={start:g}"
    if settings.name != "direct":
        raise ValueError(
            f"sampler: a policy with diffusion {objective} was not trained for {settings.name}; give {asked}, or "
            "sampler=auto"
        )
    if settings.steps > most_steps or settings.start != start or settings.spacing != "trailing":
        raise ValueError(
            f"sampler: a policy with diffusion {objective} plans in at most {most_steps} steps with trailing spacing "
            f"from start {start:g}, not in {settings.steps} with {settings.spacing} from {settings.start:g}; give "
            f"{asked} sampler.steps={most_steps}, or sampler=auto"
        )


class Objective(Protocol):
    """How a network is trained and how its output is interpreted. An `nn.Module`.

    Everything that it keeps besides the network (an averaged target, a teacher, step counters) is a parameter or buffer
    of the module, so that it moves with the policy and is part of the training state. Checkpoints for acting leave it
    out. The defaults here are those of an objective that trains the network alone, to denoise at every level.

    Attributes:
        schedule: the noise schedule that the network is trained on.
        condition_dropout: the share of windows whose condition is replaced by a learned null condition.
        sees_stop: whether the network also takes the time at which a step ends.
        sees_waypoint_levels: whether the network must take a time for each waypoint.
        outputs: features of the network's output for each feature of the trajectory.
        sampler: the choice of sampler unless another is made.
        denoises: whether the clean estimate is the mean of clean trajectories at every level, as likelihood, inversion
            and interpolation of plans need.
        teaching: whether a teacher is "required", "optional" or "impossible".
    """

    schedule: Schedule
    condition_dropout: float
    sees_stop: bool = False
    sees_waypoint_levels: bool = False
    outputs: int = 1
    sampler: Choice = "ddim"
    denoises: bool = True
    teaching: str = "impossible"

    def attach(self, network: nn.Module) -> None:
        """Called once, when the network is created. Target networks are copied from it here."""

    def learn_from(self, teacher: nn.Module) -> None:
        """Called once before training if there is a teacher: a network like that of `attach`, which is kept fixed."""

    def check_sampler(self, settings: Any) -> None:
        """Raise ValueError if the network is not trained for the sampler with these settings."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Optimiser groups of the parameters that it trains besides the network: `params` and settings of AdamW.

        An optional `lr_scale` multiplies the learning rate.
        """
        return []

    def draw(self, clean: Tensor, generator: torch.Generator, part: Part = WHOLE) -> Any:
        """Draw everything random that `loss` needs for the encoded trajectories `clean` [B, ...].

        Args:
            generator: on the device of `clean`.
            part: which part of a larger batch this is; its numbers are a slice of those drawn for the whole.
        """
        ...

    def loss(self, network: ConditionedNetwork, batch: Any, step: int | Tensor, counts: Tensor | None = None) -> Tensor:
        """The training loss, a scalar, for a `batch` from `draw` at optimiser step `step`.

        Only `trainer.mask_padding` gives `counts` [B, H], by which the error of each waypoint is multiplied.

        Where training is captured as a CUDA graph, `step` is a tensor on the GPU and must not be read on the host.
        """
        ...

    def stepped(self, network: nn.Module, step: int) -> None:
        """Called after optimiser step `step`. Averaged target networks are updated here."""

    def denoiser(self, network: Conditioned) -> Denoise:
        """A function (x, row) that returns the clean estimate of the noisy x at the row's level."""
        ...
