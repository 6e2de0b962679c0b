"""The conditional 1D temporal U-Net of Diffusion Policy (Chi et al. 2023, figure 2a).

Every layer has the shape of the published one, so published weights can be loaded by mapping their names;
tests/networks has the map. Shape legend: B batch, H horizon, A action, D condition.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffpolicy.networks.backbones.unet1d_sampling import at_moments, may_unroll
from diffpolicy.networks.condition import Condition, ConditionShape
from diffpolicy.networks.layers.blocks import ConditionalResidualBlock, ConvBlock, SinusoidalEmbedding
from diffpolicy.networks.layers.conv import Conv1d, ConvTranspose1d, concatenate
from diffpolicy.networks.layers.stop import StopEmbedding, with_stop
from diffpolicy.networks.protocols import AtCondition, Time, at_places, moments, plain
from diffpolicy.system.schema import Count, Range

Width = Annotated[int, Range(1, 2**16)]


@dataclass
class UNet1dConfig:
    """Settings of `UNet1d`."""

    name: str = "unet1d"
    widths: Annotated[list[Width], Count(2, 16)] = field(default_factory=lambda: [32, 64, 128])
    time_embedding_dim: Annotated[int, Range(4, 2**16)] = 128
    kernel_size: Annotated[int, Range(1, 255)] = 5
    groups: Annotated[int, Range(1, 2**16)] = 8
    head_groups: Annotated[int | None, Range(1, 2**16)] = None
    film_scale: bool = True


class UNet1d(nn.Module):
    """Temporal U-Net that is conditioned on a vector; a `Backbone`.

    Args:
        action_dim: A, the features of the trajectory that is denoised.
        condition_dim: D, the features of the flattened observations.
        widths: channels of each level; the length is halved from one level to the next.
        time_embedding_dim: features of the embedded time, even and at least 4.
        kernel_size: odd kernel size of every convolution block.
        groups: number of groups in every group normalisation; divides each width.
        head_groups: those of the last block; None for `groups`. The published network has 8 there whatever n_groups is.
        film_scale: whether the condition also scales (cond_predict_scale of the published network) or only adds.
        sees_stop: whether it also takes the time at which a step ends.
        outputs: features of the output for each one of the trajectory.

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
        head_groups: int | None = None,
        film_scale: bool = True,
        sees_stop: bool = False,
        outputs: int = 1,
    ) -> None:
        super().__init__()
        head_groups = groups if head_groups is None else head_groups
        _check(widths, time_embedding_dim, kernel_size, groups, head_groups)
        self.time_encoder = nn.Sequential(
            SinusoidalEmbedding(time_embedding_dim),
            nn.Linear(time_embedding_dim, 4 * time_embedding_dim),
            nn.Mish(),
            nn.Linear(4 * time_embedding_dim, time_embedding_dim),
        )
        self.action_dim = action_dim
        self.stop_encoder = StopEmbedding(time_embedding_dim) if sees_stop else None

        def pair(channels_in: int, channels_out: int) -> _Pair:
            condition = time_embedding_dim + condition_dim
            return _Pair(channels_in, channels_out, condition, kernel_size, groups, film_scale)

        steps_down = list(pairwise([action_dim, *widths]))
        self.down = nn.ModuleList(pair(i, o) for i, o in steps_down)
        self.shrink = nn.ModuleList(Conv1d(w, w, 3, stride=2, padding=1) for w in widths[:-1])
        self.middle = pair(widths[-1], widths[-1])
        steps_up = list(pairwise(reversed(widths)))
        self.up = nn.ModuleList(pair(2 * i, o) for i, o in steps_up)
        self.grow = nn.ModuleList(ConvTranspose1d(o, o, 4, stride=2, padding=1) for _, o in steps_up)
        self.head = nn.Sequential(
            ConvBlock(widths[0], widths[0], kernel_size, head_groups), Conv1d(widths[0], outputs * action_dim, 1)
        )

    @classmethod
    def from_settings(
        cls,
        config: UNet1dConfig,
        encoded_shape: tuple[int, int],
        condition: ConditionShape,
        sees_stop: bool = False,
        outputs: int = 1,
    ) -> "UNet1d":
        """Build the network for trajectories of `encoded_shape` [horizon, A].

        Raises:
            NotGivenError: the condition has no vector.
            ValueError: the horizon cannot be halved between the levels, or the settings do not match.
        """
        horizon, action_dim = encoded_shape
        (condition_dim,) = condition.of("vector")
        _check_length("window", horizon, len(config.widths) - 1)
        return cls(
            action_dim,
            condition_dim,
            config.widths,
            config.time_embedding_dim,
            config.kernel_size,
            config.groups,
            config.head_groups,
            config.film_scale,
            sees_stop,
            outputs,
        )

    def forward(self, x: Tensor, time: Tensor, vector: Tensor, stop: Tensor | None = None) -> Tensor:
        """x [B, H, A], time [B], vector [B, D] and, if it sees one, a stop time [B] -> [B, H, outputs * A].

        Raises:
            ValueError: a time for every waypoint, or a horizon that cannot be halved between the levels.
        """
        _check_length("unet1d", x.shape[1], len(self.shrink))
        if time.dim() != 1:
            raise ValueError(f"unet1d: time has shape {list(time.shape)}, expected [batch], one for all waypoints")
        condition = F.mish(torch.cat([self.embedded_time(time, stop), vector], dim=-1))
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

    def embedded_time(self, time: Tensor, stop: Tensor | None = None) -> Tensor:
        """The features of times [B] and stop times [B], [B, time_embedding_dim]."""
        return with_stop(self.time_encoder(time), self.stop_encoder, stop)

    def at_condition(
        self, condition: Condition, times: Sequence[Time], horizon: int, stops: Sequence[Time] = ()
    ) -> AtCondition:
        """Fix the condition: on a CPU in float32 or float64, the network is unrolled for these times and this horizon.

        The unrolled form does not call forward hooks. Where it does not apply (gradients, autocast, torch.compile, a
        different time or shape, a subclass) the network is called directly.
        """
        as_it_is = plain(self, condition)
        (vector,) = condition.fields(self.reads)
        known = moments(times, stops)
        if not known or type(self) is not UNet1d or not may_unroll(vector):
            return as_it_is
        unrolled, shape = at_moments(self, vector, known, horizon), (len(vector), horizon, self.action_dim)
        found = at_places(known, lambda x, place: unrolled(x, known[place]), as_it_is)

        def unrolled_or_plain(x: Tensor, time: Time, stop: Time | None = None) -> Tensor:
            if torch.is_grad_enabled() or x.shape != shape:
                return as_it_is(x, time, stop)
            return found(x, time, stop)

        return unrolled_or_plain

    def parameter_groups(self) -> list[dict[str, Any]]:
        """All parameters in one group, with the trainer's settings."""
        return [{"params": list(self.parameters())}]


class _Pair(nn.Module):
    """The two residual blocks of one level."""

    def __init__(
        self, channels_in: int, channels_out: int, condition: int, kernel_size: int, groups: int, film_scale: bool
    ) -> None:
        super().__init__()
        self.first = ConditionalResidualBlock(channels_in, channels_out, condition, kernel_size, groups, film_scale)
        self.second = ConditionalResidualBlock(channels_out, channels_out, condition, kernel_size, groups, film_scale)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return self.second(self.first(x, condition), condition)


def _check_length(where: str, horizon: int, halvings: int) -> None:
    if horizon % 2**halvings:
        raise ValueError(f"{where}: horizon {horizon} must be divisible by {2**halvings} ({halvings} down-samplings)")


def _check(widths: Sequence[int], time_embedding_dim: int, kernel_size: int, groups: int, head_groups: int) -> None:
    if len(widths) < 2:
        raise ValueError(f"unet1d: widths {list(widths)} must have at least two levels")
    if groups < 1:
        raise ValueError(f"unet1d: groups {groups} must be at least 1")
    for width in widths:
        if width < 1 or width % groups:
            raise ValueError(f"unet1d: width {width} must be a positive multiple of groups {groups}")
    if head_groups < 1 or widths[0] % head_groups:
        raise ValueError(f"unet1d: head_groups {head_groups} must divide the first width {widths[0]}")
    if time_embedding_dim < 4 or time_embedding_dim % 2:
        raise ValueError(f"unet1d: time_embedding_dim {time_embedding_dim} must be even and at least 4")
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"unet1d: kernel_size {kernel_size} must be odd, so that the length stays")
