"""A `UNet1d` at a fixed condition, for sampling on a CPU: everything that chunks can share is kept between them.

Kept until the weights change: the scales and biases of FiLM at the sampler's moments, copies of weights in the order in
which products read them, and the unrolled network with its buffers. A copy takes as much memory as the weight.

Shape legend: B batch, H horizon, A action, D condition, R times, F features of all FiLM layers.
"""

import weakref
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffpolicy.networks.backbones.unet1d_unrolled import Copies, UnrolledUNet1d, residual_blocks
from diffpolicy.networks.layers import products
from diffpolicy.networks.protocols import Moment, as_tensors
from diffpolicy.networks.watch import Watch

KEPT_KINDS = 4  # of calls (batch, horizon, type, threads), each with its own buffers
KEPT_SAMPLERS = 8  # each with what its times add to FiLM, R * F values

T = TypeVar("T")
AtMoment = Callable[[Tensor, Moment], Tensor]
"""x [B, H, A] at one of the known moments -> [B, H, outputs * A]."""


def may_unroll(x: Tensor) -> bool:
    """Whether a network can be unrolled at the condition `x`: float32 or float64 on a CPU, no autocast or compile."""
    if torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling():
        return False
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)


@torch.no_grad()
def at_moments(network: nn.Module, condition: Tensor, known: Sequence[Moment], horizon: int) -> AtMoment:
    """`network`, a `UNet1d`, at the condition [B, D] with its weights of now.

    Raises:
        ValueError: DIFFPOLICY_KERNELS names a form that is unknown or impossible here.
    """
    kept = _KEPT.get(network)
    if kept is None or not kept.watch.is_unchanged():
        kept = _KEPT[network] = _Kept(network)
    kind = kept.kind(network, condition, horizon)
    of_moments, of_condition = kept.film.of_moments(network, tuple(known)), kept.film.of_condition(condition)

    def at_moment(x: Tensor, moment: Moment) -> Tensor:
        program, film = kind.free.pop() if kind.free else kind.program()  # another thread may be using one
        torch.add(of_condition, of_moments[moment], out=film)
        output = program(x)
        kind.free.append((program, film))
        return output

    return at_moment


class _Kept:
    """What is kept for a network while its weights stay as they are."""

    def __init__(self, network: nn.Module) -> None:
        self.watch, self.film = Watch(network), _Film(network)
        self._copies, self._kinds = Copies(), dict[Any, _Kind]()

    def kind(self, network: nn.Module, condition: Tensor, horizon: int) -> "_Kind":
        modes = torch.is_inference_mode_enabled(), torch.get_num_threads(), products.setting()
        key = (len(condition), horizon, condition.dtype, *modes)
        return _latest(self._kinds, key, KEPT_KINDS, lambda: _Kind(network, condition, horizon, self._copies))


class _Kind:
    """Unrolled networks for one kind of call.

    Attributes:
        free: those that are not in use, each with its FiLM buffer [B, F].
    """

    def __init__(self, network: Any, condition: Tensor, horizon: int, copies: Copies) -> None:
        self._network, self._copies = weakref.ref(network), copies
        self._shape = len(condition), horizon, network.action_dim
        self._like = condition.new_empty(0)
        self.free: list[tuple[UnrolledUNet1d, Tensor]] = []

    def program(self) -> tuple[UnrolledUNet1d, Tensor]:
        network = self._network()
        assert network is not None, "whoever calls a network holds it"
        features = sum(block.film[1].out_features for block in residual_blocks(network))
        film = self._like.new_empty(self._shape[0], features)
        return UnrolledUNet1d(network, self._shape, film, self._copies), film


class _Film:
    """The FiLM layers of a network, all in one."""

    def __init__(self, network: Any) -> None:
        self._layers = [block.film[1] for block in residual_blocks(network)]
        self._split = network.time_encoder[-1].out_features
        self._weight = torch.cat([layer.weight[:, self._split :] for layer in self._layers]).detach()  # [F, D]
        self._known = dict[Any, dict[Moment, Tensor]]()

    def of_condition(self, condition: Tensor) -> Tensor:
        """What the condition [B, D] adds to all scales and biases, [B, F]."""
        return F.linear(F.mish(condition), self._weight)

    def of_moments(self, network: Any, known: tuple[Moment, ...]) -> dict[Moment, Tensor]:
        """What each of the moments adds to all scales and biases, [F]."""

        def new() -> dict[Moment, Tensor]:
            embedded = F.mish(network.embedded_time(*as_tensors(known, torch.empty(0))))  # [R, D']
            parts = [F.linear(embedded, one.weight[:, : self._split], one.bias) for one in self._layers]
            return dict(zip(known, torch.cat(parts, dim=1), strict=True))

        return _latest(self._known, known, KEPT_SAMPLERS, new)


def _latest(kept: dict[Any, T], key: Any, count: int, new: Callable[[], T]) -> T:
    """The entry of `key`, made by `new` if it is missing; keeps the `count` latest entries."""
    found = kept.pop(key, None) or new()
    kept[key] = found  # the latest stands last
    for oldest in list(kept)[:-count]:
        kept.pop(oldest, None)
    return found


_KEPT: weakref.WeakKeyDictionary[nn.Module, _Kept] = weakref.WeakKeyDictionary()
