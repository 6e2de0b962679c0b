"""Building blocks of the temporal U-Net (Chi et al. 2023, section III; Janner et al. 2022).

Shape legend: B batch, C channels, T time steps, D features of the conditioning vector.
"""

import math

import torch
from einops import rearrange
from torch import Tensor, nn

from diffpolicy.networks.layers.conv import Conv1d, GroupNormMish


class SinusoidalEmbedding(nn.Module):
    """Sines and cosines of a scalar at geometrically spaced frequencies (Vaswani et al. 2017): [...] -> [..., dim]."""

    frequency: Tensor  # [dim / 2]

    def __init__(self, dim: int) -> None:
        super().__init__()
        half = dim // 2
        frequency = torch.exp(torch.arange(half, dtype=torch.float64) * (-math.log(10_000) / (half - 1)))
        self.register_buffer("frequency", frequency.float(), persistent=False)

    def forward(self, time: Tensor) -> Tensor:
        angle = time[..., None] * self.frequency  # [..., dim / 2]
        return torch.cat([angle.sin(), angle.cos()], dim=-1)


class ConvBlock(nn.Sequential):
    """Convolution over time that keeps the length, then group normalisation and Mish: [B, C, T] -> [B, C', T]."""

    def __init__(self, channels_in: int, channels_out: int, kernel_size: int, groups: int) -> None:
        super().__init__(
            Conv1d(channels_in, channels_out, kernel_size, padding=kernel_size // 2),
            GroupNormMish(groups, channels_out),
        )


class ConditionalResidualBlock(nn.Module):
    """Two convolution blocks with a residual connection, and FiLM between them (Perez et al. 2018).

    Without `film_scale`, FiLM only adds. Input [B, C, T] and condition [B, D], after the Mish that the blocks of a
    network share; output [B, C', T].
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        condition: int,
        kernel_size: int,
        groups: int,
        film_scale: bool = True,
    ) -> None:
        super().__init__()
        self.first = ConvBlock(channels_in, channels_out, kernel_size, groups)
        self.second = ConvBlock(channels_out, channels_out, kernel_size, groups)
        self.film_scale = film_scale
        # The published block has its own Mish in place of nn.Identity; the name of the weights comes from there.
        self.film = nn.Sequential(nn.Identity(), nn.Linear(condition, (2 if film_scale else 1) * channels_out))
        same = channels_in == channels_out
        self.residual = nn.Identity() if same else Conv1d(channels_in, channels_out, kernel_size=1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        if self.film_scale:
            scale, bias = rearrange(self.film(condition), "b (two c) -> two b c 1", two=2)
            hidden = torch.addcmul(bias, self.first(x), scale)
        else:
            hidden = self.first(x) + self.film(condition)[..., None]
        return self.second(hidden) + self.residual(x)
