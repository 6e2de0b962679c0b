"""A small vision transformer for images (Dosovitskiy et al. 2021).

Shape legend: N images, P patches, E features of a patch, C channels, H and W height and width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffpolicy.networks.encoders.images import ImageEncoder, ImageEncoderConfig
from diffpolicy.networks.layers.attention import EncoderLayer
from diffpolicy.networks.observation import ObservationSpec
from diffpolicy.system.schema import Range


@dataclass
class VitConfig(ImageEncoderConfig):
    """Settings of `vit`.

    Attributes:
        patch: height and width of a patch in pixels; it must divide the crop, which is 80 of 96 pixels here.
        width: E; a multiple of `heads`.
        depth: number of blocks.
        heads: number of heads of the attention.
    """

    name: str = "vit"
    crop: Annotated[float, Range(above=0.0, most=1.0)] = 5 / 6
    patch: Annotated[int, Range(1, 4096)] = 8
    width: Annotated[int, Range(1, 2**16)] = 192
    depth: Annotated[int, Range(1, 256)] = 6
    heads: Annotated[int, Range(1, 1024)] = 3


class Vit(nn.Module):
    """Patches with learned places through blocks of attention; their mean and a linear layer: -> [N, features].

    Args:
        size: [H, W] of the images.

    Raises:
        ValueError: the patch does not divide the size, or the heads the width.
    """

    def __init__(self, channels: int, size: tuple[int, int], own: VitConfig) -> None:
        super().__init__()
        if any(side % own.patch for side in size):
            raise ValueError(
                f"encoder {own.name}: patch {own.patch} must divide the {size[0]} x {size[1]} pixels of the crop; "
                "choose another encoder.patch or encoder.crop"
            )
        if own.width % own.heads:
            raise ValueError(f"encoder {own.name}: heads {own.heads} must divide width {own.width}")
        count = (size[0] // own.patch) * (size[1] // own.patch)
        self.patches = nn.Conv2d(channels, own.width, own.patch, stride=own.patch)
        self.places = nn.Parameter(0.02 * torch.randn(count, own.width))
        self.blocks = nn.Sequential(*(EncoderLayer(own.width, own.heads) for _ in range(own.depth)))
        self.norm = nn.LayerNorm(own.width)
        self.head = nn.Linear(own.width, own.features)
        self.to(memory_format=torch.channels_last)  # pyright: ignore

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.places  # [N, P, E]
        return F.relu(self.head(self.norm(self.blocks(tokens)).mean(dim=1)))


def vit(own: VitConfig, observations: Mapping[str, ObservationSpec], n_obs_steps: int) -> ImageEncoder:
    """The encoder with a vision transformer."""
    return ImageEncoder(own, observations, n_obs_steps, lambda channels, size: Vit(channels, size, own))
