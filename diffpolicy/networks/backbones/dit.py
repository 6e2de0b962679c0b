"""A diffusion transformer with adaLN-Zero blocks (Peebles & Xie 2023, section 3.2).

As in Dasari et al. 2024, time and observations modulate every block, and the waypoints are the tokens. The observations
are embedded by an MLP of their vector, as the time is; that paper has transformer layers and a mean over their tokens.
Shape legend: B batch, H horizon, A action, D condition, E width, R times, M features of all modulations.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffpolicy.networks.condition import Condition, ConditionShape
from diffpolicy.networks.layers.attention import Attention, check_width, feed_forward
from diffpolicy.networks.layers.blocks import SinusoidalEmbedding
from diffpolicy.networks.layers.decay import decay_groups
from diffpolicy.networks.layers.stop import StopEmbedding, with_stop
from diffpolicy.networks.protocols import AtCondition, Time, as_tensors, at_places, known_moments, plain
from diffpolicy.system.schema import Range

MOST_KEPT = 2**24  # numbers of the modulations for all times; beyond it they are computed at each evaluation


@dataclass
class DiTConfig:
    """Settings of `DiT`."""

    name: str = "dit"
    layers: Annotated[int, Range(1, 256)] = 4
    heads: Annotated[int, Range(1, 256)] = 4
    width: Annotated[int, Range(4, 2**16)] = 96


class DiT(nn.Module):
    """Waypoints attend to each other; the condition scales, shifts and gates every block; a `Backbone`.

    At the start of training every block is the identity, and the output is zero.

    Args:
        horizon, action_dim: H and A of the trajectory that is denoised.
        condition_dim: D, the features of the condition's vector.
        layers, heads, width: its size; the width is E.
        sees_stop: whether it also takes the time at which a step ends.
        outputs: features of the output for each one of the trajectory.

    Raises:
        ValueError: the width cannot be split among the heads.
    """

    reads: tuple[str, ...] = ("vector",)
    takes_waypoint_times = True

    def __init__(
        self,
        horizon: int,
        action_dim: int,
        condition_dim: int,
        layers: int = 8,
        heads: int = 4,
        width: int = 256,
        sees_stop: bool = False,
        outputs: int = 1,
    ) -> None:
        super().__init__()
        check_width("dit", width, heads)
        self.input = nn.Linear(action_dim, width)
        self.positions = nn.Parameter(torch.empty(horizon, width))
        self.time = nn.Sequential(SinusoidalEmbedding(width), *_mlp(width, width))
        self.observation = _mlp(condition_dim, width)
        self.layers: Any = nn.ModuleList(_Block(width, heads) for _ in range(layers))
        self.head = _Head(width, outputs * action_dim)
        self._initialize()
        self.stop = StopEmbedding(width) if sees_stop else None

    @classmethod
    def from_settings(
        cls,
        config: DiTConfig,
        encoded_shape: tuple[int, int],
        condition: ConditionShape,
        sees_stop: bool = False,
        outputs: int = 1,
    ) -> "DiT":
        """Build the network for trajectories of `encoded_shape` [H, A].

        Raises:
            NotGivenError: the condition has no vector.
            ValueError: the settings do not match.
        """
        (condition_dim,) = condition.of("vector")
        size = config.layers, config.heads, config.width
        return cls(*encoded_shape, condition_dim, *size, sees_stop, outputs)

    def forward(self, x: Tensor, time: Tensor, vector: Tensor, stop: Tensor | None = None) -> Tensor:
        """x [B, H, A], time [B], vector [B, D] and, if it sees one, a stop time [B] -> [B, H, outputs * A].

        With a level for each waypoint, the times are [B, H].

        Raises:
            ValueError: another horizon.
        """
        times = [one[:, None] if one.dim() == 1 else one for one in (time, stop) if one is not None]
        condition = self._time(*times) + self.observation(vector)[:, None]  # [B, 1 or H, E]
        return self._denoised(x, self._modulations(condition))

    def at_condition(
        self, condition: Condition, times: Sequence[Time], horizon: int, stops: Sequence[Time] = ()
    ) -> AtCondition:
        """Fix the condition: the modulations of all blocks are computed once for these times, in one product each.

        Forward hooks are not called. Where this form does not apply (autocast, torch.compile, an unknown time, a time
        for each waypoint, a subclass), the network is.
        """
        as_it_is = plain(self, condition)
        known = known_moments(self, DiT, times, stops)
        if not known:
            return as_it_is
        (vector,) = condition.fields(self.reads)
        modulations_at = self._modulations_at(self._time(*as_tensors(known, vector)), self.observation(vector))
        return at_places(known, lambda x, place: self._denoised(x, modulations_at(place)), as_it_is)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The weights of the linear layers; then biases and positions, which weight decay leaves out."""
        return decay_groups([self])

    def _time(self, time: Tensor, stop: Tensor | None = None) -> Tensor:
        """time [...] and stop [...] -> [..., E]."""
        return with_stop(self.time[1:](self.time[0](time).to(self.positions)), self.stop, stop)

    def _modulations(self, condition: Tensor) -> list[Tensor]:
        """condition [..., E] -> for every block [..., 6 * E], for the head [..., 2 * E]."""
        active = F.silu(condition)
        return [layer.modulation(active) for layer in (*self.layers, self.head)]

    def _modulations_at(self, time: Tensor, observed: Tensor) -> Callable[[int], list[Tensor]]:
        """`_modulations` by the place of a time in `time` [R, E], given observed [B, E]."""
        features = (6 * len(self.layers) + 2) * observed.shape[1]
        if len(time) * len(observed) * features > MOST_KEPT:
            return lambda place: self._modulations((time[place] + observed)[:, None])
        of_all = self._modulations((time[:, None] + observed)[:, :, None])  # each [R, B, 1, 6 * E]
        return lambda place: [one[place] for one in of_all]

    def _denoised(self, x: Tensor, modulations: Sequence[Tensor]) -> Tensor:
        """x [B, H, A] and what `_modulations` gives, each [B, 1 or H, ...] -> [B, H, A]."""
        if x.shape[1] != len(self.positions):
            raise ValueError(f"dit: horizon {x.shape[1]}, expected {len(self.positions)}, as it was built for")
        x = self.input(x) + self.positions
        for layer, modulation in zip((*self.layers, self.head), modulations, strict=True):
            x = layer(x, modulation)
        return x

    def _initialize(self) -> None:
        """As Peebles & Xie do: Xavier, small weights for the time, and zeros where the condition modulates."""
        nn.init.normal_(self.positions, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for module in self.time:
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
        for layer in (self.head.linear, *(one.modulation for one in (*self.layers, self.head))):
            nn.init.zeros_(layer.weight)


class _Block(nn.Module):
    """Attention and MLP, each shifted, scaled and gated: x [B, H, E] and modulation [B, 1 or H, 6 * E] -> like x."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.feed_forward = feed_forward(width, nn.GELU(approximate="tanh"))
        self.modulation = nn.Linear(width, 6 * width)

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6, dim=-1)
        x = torch.addcmul(x, gate1, self.attention(_modulated(x, shift1, scale1)))
        return torch.addcmul(x, gate2, self.feed_forward(_modulated(x, shift2, scale2)))


class _Head(nn.Module):
    """The last layer: x [B, H, E] and modulation [B, 1 or H, 2 * E] -> [B, H, A]."""

    def __init__(self, width: int, action_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, action_dim)
        self.modulation = nn.Linear(width, 2 * width)

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        return self.linear(_modulated(x, *modulation.chunk(2, dim=-1)))


def _modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    features = int(x.shape[-1])  # a number of Python's, as an export to ONNX needs it
    return torch.addcmul(shift, F.layer_norm(x, (features,), eps=1e-6), 1.0 + scale)


def _mlp(inputs: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width))
