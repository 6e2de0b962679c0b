"""The interfaces of the networks that a policy is made of: encoders and backbones."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from diffpolicy.networks.condition import Condition, ConditionShape
from diffpolicy.system.parts import WHOLE, Part


class Encoder(Protocol):
    """Encodes the observations of a window into the condition of the backbone. An `nn.Module`."""

    @property
    def output(self) -> ConditionShape:
        """The fields and shapes of the condition that it returns."""
        ...

    def __call__(self, observation: Mapping[str, Tensor], /) -> Condition:
        """Encode {key: [batch, n_obs_steps, *shape]}, with vectors normalised and images as uint8."""
        ...

    def augmented(
        self, observation: Mapping[str, Tensor], generator: torch.Generator, part: Part = WHOLE
    ) -> Mapping[str, Tensor]:
        """A randomly changed observation to encode in training, or the same one.

        Args:
            generator: of this training step, on the device of the observation.
            part: which part of a larger batch this is; its numbers are a slice of those drawn for the whole.
        """
        ...


class FrameEncoder(Encoder, Protocol):
    """An encoder of each time step alone, so that `encoder(o)` is `encoder.joined(encoder.frames(o))`."""

    def frames(self, observation: Mapping[str, Tensor], /) -> Tensor:
        """The features of every time step, for any number of steps: {key: [batch, steps, ...]} -> [batch, steps, F]."""
        ...

    def joined(self, features: Tensor, /) -> Condition:
        """The condition of the features of a window, [batch, n_obs_steps, F]."""
        ...


Time = float | Tensor
"""Of the whole batch; a tensor [horizon] where waypoints have levels of their own."""


class AtCondition(Protocol):
    """A backbone with a fixed condition: x [batch, horizon, features] and one time for the whole batch -> like x.

    `stop` is the time at which the step ends, for a network that was trained with it; else None.
    """

    def __call__(self, x: Tensor, time: Time, stop: Time | None = None, /) -> Tensor: ...


class Backbone(Protocol):
    """The denoising network. An `nn.Module`.

    Attributes:
        reads: the fields of the condition that it takes, in the order of its arguments after the time.
        takes_waypoint_times: whether it also takes a time for each waypoint; False where there is no such attribute.
    """

    reads: tuple[str, ...]

    def __call__(self, x: Tensor, time: Tensor, /, *fields: Tensor) -> Tensor:
        """x [batch, horizon, features], time [batch] and the fields of `reads` -> like x.

        A network that sees a level for each waypoint also takes time [batch, horizon]. One that was built to see the
        time at which a step ends takes that time [batch] as its last argument. One that was built for more outputs
        returns [batch, horizon, outputs * features].
        """
        ...

    def at_condition(
        self, condition: Condition, times: Sequence[Time], horizon: int, stops: Sequence[Time] = ()
    ) -> AtCondition:
        """Fix the condition and return the fastest form for these times; `plain` if there is only one form.

        `stops` has a stop time for each time, or none.
        """
        ...

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Optimiser groups: `params`, and any AdamW settings that differ from the trainer's."""
        ...


def plain(network: Backbone, condition: Condition) -> AtCondition:
    """Fix the condition of `network` without changing how it computes.

    Raises:
        NotGivenError: the condition lacks a field that the network reads.
    """
    fields = condition.fields(network.reads)

    def at(x: Tensor, time: Time, stop: Time | None = None) -> Tensor:
        now, *then = [_of_batch(one, x) for one in (time, stop) if one is not None]
        return network(x, now, *fields, *then)

    return at


@dataclass(frozen=True)
class Moment:
    """The time of a level and, for a network that sees it, the time at which the step ends."""

    time: float
    stop: float | None = None


def moments(times: Sequence[Time], stops: Sequence[Time] = ()) -> list[Moment]:
    """The different times, each with its stop time if there are any; those that are tensors are left out."""
    found: list[Moment] = []
    for time, stop in zip(times, stops or [None] * len(times), strict=True):
        if not isinstance(time, Tensor) and not isinstance(stop, Tensor):
            found.append(Moment(time, stop))
    return list(dict.fromkeys(found))


def known_moments(network: nn.Module, kind: type, times: Sequence[Time], stops: Sequence[Time] = ()) -> list[Moment]:
    """The `moments` for which `network` may be computed in another way than by a call.

    There are none if it is compiled or of a subclass of `kind`, which may compute something else, or under autocast,
    where another order of products would round more.
    """
    if torch.compiler.is_compiling() or any(torch.is_autocast_enabled(device) for device in ("cpu", "cuda")):
        return []
    if type(network) is not kind or network._compiled_call_impl is not None:
        return []
    return moments(times, stops)


def at_places(known: Sequence[Moment], found: Callable[[Tensor, int], Tensor], otherwise: AtCondition) -> AtCondition:
    """`found(x, place)` at the moment with this place in `known`; `otherwise` at others."""
    places = {(one.time, one.stop): place for place, one in enumerate(known)}

    def at(x: Tensor, time: Time, stop: Time | None = None) -> Tensor:
        if isinstance(time, Tensor) or isinstance(stop, Tensor) or (time, stop) not in places:
            return otherwise(x, time, stop)
        return found(x, places[time, stop])

    return at


def as_tensors(known: Sequence[Moment], like: Tensor) -> list[Tensor]:
    """Their times and, if they have any, their stop times: float32, each [R], on the device of `like`."""
    columns = [[one.time for one in known], [one.stop for one in known if one.stop is not None]]
    return [_as_tensor(column, like) for column in columns if column]


def _as_tensor(times: Sequence[float], like: Tensor) -> Tensor:
    # Filling does not wait for a GPU, as copying would.
    return torch.cat([like.new_full((1,), time, dtype=torch.float32) for time in times])


def _of_batch(time: Time, x: Tensor) -> Tensor:
    if isinstance(time, Tensor):
        return time.to(x.device, torch.float32).expand(len(x), -1)
    return x.new_full((len(x),), time, dtype=torch.float32)
