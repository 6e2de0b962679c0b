"""The conditional 1D temporal U-Net of Diffusion Policy (Chi et al. 2023, figure 2a).

Every layer has the shape of the published one, so published weights can be loaded by mapping their names;
tests/networks has the map. Shape legend: B batch, H horizon, A action, D condition.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from diffpolicy.networks.backbones.unet1d_sampling import at_times, may_unroll
from diffpolicy.networks.condition import Condition, ConditionShape
from diffpolicy.networks.layers.blocks import ConditionalResidualBlock, ConvBlock, SinusoidalEmbedding
from diffpolicy.networks.layers.conv import Conv1d, ConvTranspose1d, concatenate
from diffpolicy.networks.protocols import AtCondition, Time, plain


@dataclass
class UNet1dConfig:
    """Settings of `UNet1d`."""

    name: str = "unet1d"
    widths: list[int] = field(default_factory=lambda: [32, 64, 128])
    time_embedding_dim: int = 128
    kernel_size: int = 5
    groups: int = 8


class UNet1d(nn.Module):
    """Temporal U-Net that is conditioned on a vector; a `Backbone`.

    Args:
        action_dim: A, the features of the trajectory that is denoised.
        condition_dim: D, the features of the flattened observations.
        widths: channels of each level; the length is halved from one level to the next.
        time_embedding_dim: features of the embedded time, even and at least 4.
        kernel_size: odd kernel size of every convolution block.
        groups: number of groups in every group normalisation; divides each width.

    Raises:
        ValueError: a setting is out of range, or the settings do not match.
    """

    reads: tuple[str, ...] = ("vector",)

    def __init__(
        self,
        action_dim: int,
        condition_dim: int,
        widths: Sequence[int] = (256, 512, 1024),
        time_embedding_dim: int = 256,
        kernel_size: int = 5,
        groups: int = 8,
    ) -> None:
        super().__init__()
        _check(widths, time_embedding_dim, kernel_size, groups)
        self.time_encoder = nn.Sequential(
            SinusoidalEmbedding(time_embedding_dim),
            nn.Linear(time_embedding_dim, 4 * time_embedding_dim),
            nn.Mish(),
            nn.Linear(4 * time_embedding_dim, time_embedding_dim),
        )

        def pair(channels_in: int, channels_out: int) -> _Pair:
            return _Pair(channels_in, channels_out, time_embedding_dim + condition_dim, kernel_size, groups)

        steps_down = list(pairwise([action_dim, *widths]))
        self.down = nn.ModuleList(pair(i, o) for i, o in steps_down)
        self.shrink = nn.ModuleList(Conv1d(w, w, 3, stride=2, padding=1) for w in widths[:-1])
        self.middle = pair(widths[-1], widths[-1])
        steps_up = list(pairwise(reversed(widths)))
        self.up = nn.ModuleList(pair(2 * i, o) for i, o in steps_up)
        self.grow = nn.ModuleList(ConvTranspose1d(o, o, 4, stride=2, padding=1) for _, o in steps_up)
        self.head = nn.Sequential(
            ConvBlock(widths[0], widths[0], kernel_size, groups), Conv1d(widths[0], action_dim, 1)
        )

    @classmethod
    def from_settings(cls, config: UNet1dConfig, encoded_shape: tuple[int, int], condition: ConditionShape) -> "UNet1d":
        """Build the network for trajectories of `encoded_shape` [horizon, A].

        Raises:
            NotGivenError: the condition has no vector.
            ValueError: the horizon cannot be halved between the levels, or the settings do not match.
        """
        horizon, action_dim = encoded_shape
        (condition_dim,) = condition.of("vector")
        factor = 2 ** (len(config.widths) - 1)
        if horizon % factor:
            raise ValueError(
                f"window: horizon {horizon} must be divisible by {factor} ({len(config.widths) - 1} down-samplings)"
            )
        return cls(
            action_dim, condition_dim, config.widths, config.time_embedding_dim, config.kernel_size, config.groups
        )

    def forward(self, x: Tensor, time: Tensor, vector: Tensor) -> Tensor:
        """x [B, H, A], time [B], vector [B, D] -> [B, H, A].

        Raises:
            ValueError: a time for every waypoint.
        """
        if time.dim() != 1:
            raise ValueError(f"unet1d: time has shape {list(time.shape)}, expected [batch], one for all waypoints")
        condition = torch.cat([self.time_encoder(time), vector], dim=-1)
        x = x.transpose(1, 2)  # [B, A, H]
        skips: list[Tensor] = []
        for level, blocks in enumerate(self.down):
            x = blocks(x, condition)
            skips.append(x)
            if level < len(self.shrink):
                x = self.shrink[level](x)
        x = self.middle(x, condition)
        for blocks, grow in zip(self.up, self.grow, strict=True):
            x = grow(blocks(concatenate(x, skips.pop()), condition))
        return self.head(x).transpose(1, 2)

    def at_condition(self, condition: Condition, times: Sequence[Time], horizon: int) -> AtCondition:
        """Fix the condition: on a CPU in float32 or float64, the network is unrolled for these times and this horizon.

        The unrolled form does not call forward hooks. Where it does not apply (gradients, autocast, torch.compile, a
        different time or shape, a subclass) the network is called directly.
        """
        as_it_is = plain(self, condition)
        (vector,) = condition.fields(self.reads)
        known = [time for time in times if not isinstance(time, Tensor)]
        if not known or type(self) is not UNet1d or not may_unroll(vector):
            return as_it_is
        unrolled, shape = at_times(self, vector, known, horizon), (len(vector), horizon, self.head[1].out_channels)

        def unrolled_or_plain(x: Tensor, time: Time, stop: Time | None = None) -> Tensor:
            if stop is not None or isinstance(time, Tensor) or torch.is_grad_enabled() or time not in known:
                return as_it_is(x, time, stop)
            return unrolled(x, time) if x.shape == shape else as_it_is(x, time)

        return unrolled_or_plain

    def parameter_groups(self) -> list[dict[str, Any]]:
        """All parameters in one group, with the trainer's settings."""
        return [{"params": list(self.parameters())}]


class _Pair(nn.Module):
    """The two residual blocks of one level."""

    def __init__(self, channels_in: int, channels_out: int, condition: int, kernel_size: int, groups: int) -> None:
        super().__init__()
        self.first = ConditionalResidualBlock(channels_in, channels_out, condition, kernel_size, groups)
        self.second = ConditionalResidualBlock(channels_out, channels_out, condition, kernel_size, groups)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return self.second(self.first(x, condition), condition)


def _check(widths: Sequence[int], time_embedding_dim: int, kernel_size: int, groups: int) -> None:
    if len(widths) < 2:
        raise ValueError(f"unet1d: widths {list(widths)} must have at least two levels")
    for width in widths:
        if width < 1 or width % groups:
            raise ValueError(f"unet1d: width {width} must be a positive multiple of groups {groups}")
    if time_embedding_dim < 4 or time_embedding_dim % 2:
        raise ValueError(f"unet1d: time_embedding_dim {time_embedding_dim} must be even and at least 4")
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"unet1d: kernel_size {kernel_size} must be odd, so that the length stays")
