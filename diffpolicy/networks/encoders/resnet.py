"""ResNet-18 for images (He et al. 2016), with group normalisation (Wu & He 2018) as in Diffusion Policy.

The convolutions have the shapes and names of torchvision's, so published ImageNet weights can be loaded into them.
Shape legend: N images, C channels, H and W height and width.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffpolicy.networks.encoders.imagenet import ImageNetColours, check_source, convolutions
from diffpolicy.networks.encoders.images import ImageEncoder, ImageEncoderConfig
from diffpolicy.networks.layers.pooling import pool
from diffpolicy.networks.observation import ObservationSpec
from diffpolicy.system.schema import Count, OneOf, Range

CHANNELS_PER_GROUP = 16  # of the group normalisation
SHRINKAGE = 32  # pixels of an image for one place of the last map


@dataclass
class ResnetConfig(ImageEncoderConfig):
    """Settings of `resnet18_narrow`.

    Attributes:
        pool: keypoints (spatial softmax) or average.
        keypoints: their number.
    """

    name: str = "resnet18_narrow"
    pool: Annotated[str, OneOf("keypoints", "average")] = "keypoints"
    keypoints: Annotated[int, Range(1, 4096)] = 32


@dataclass
class Resnet18Config(ResnetConfig):
    """Settings of `resnet18`.

    Attributes:
        weights: ImageNet weights of the convolutions to start training from: a .safetensors file with the names of
            torchvision's resnet18, or torchvision.
    """

    name: str = "resnet18"
    weights: str | None = None


@dataclass
class ImportedConfig(ResnetConfig):
    """Settings of `resnet_imported`, the ResNet of a policy from another library.

    Attributes:
        blocks: of each stage: [2, 2, 2, 2] for ResNet-18, [3, 4, 6, 3] for ResNet-34.
        norm: group, or batch: batch normalisation, whose statistics no longer change.
        head: whether a linear layer follows the pooling; without it, features are those of the pooling.
    """

    name: str = "resnet_imported"
    blocks: Annotated[list[Annotated[int, Range(1, 64)]], Count(4, 4)] = field(default_factory=lambda: [2, 2, 2, 2])
    norm: Annotated[str, OneOf("group", "batch")] = "group"
    head: bool = True


class Colours(nn.Module):
    """Scale and shift each colour, as the other library standardised them: [N, C, h, w] -> the same."""

    scale: Tensor
    shift: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(channels))
        self.register_buffer("shift", torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale[:, None, None] + self.shift[:, None, None]


class FixedNorm(nn.Module):
    """Batch normalisation with fixed statistics, a factor and a summand of each channel: [N, C, h, w] -> the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight[:, None, None] + self.bias[:, None, None]


class Resnet(nn.Module):
    """The four stages of a ResNet, a pooling and a linear layer: [N, C, H, W] -> [N, features].

    Args:
        size: [H, W] of the images.
        width: channels of the first stage; the others have 2, 4 and 8 times as many.
        weights: see `Resnet18Config`; `load_weights` loads them.

    Raises:
        ValueError: `weights` are neither torchvision's nor a safetensors file, the images are too small, or there is
            no linear layer but another number of features than the pooling has.
    """

    def __init__(
        self, channels: int, size: tuple[int, int], width: int, own: ResnetConfig, weights: str | None = None
    ) -> None:
        super().__init__()
        self._where, self._weights = f"encoder {own.name}", weights
        imported = own if isinstance(own, ImportedConfig) else None
        norm = FixedNorm if imported and imported.norm == "batch" else _norm
        if own.pool == "keypoints" and max(size) <= SHRINKAGE:
            raise ValueError(
                f"{self._where}: a crop of {size[0]} x {size[1]} pixels leaves a single place, where keypoints say "
                "nothing; set encoder.pool=average, or give larger images"
            )
        check_source(weights, self._where)
        self.colours = Colours(channels) if imported else nn.Identity() if weights is None else ImageNetColours()
        self.conv1 = nn.Conv2d(channels, width, kernel_size=7, stride=2, padding=3, bias=False)
        self.norm1 = norm(width)
        blocks = imported.blocks if imported else [2, 2, 2, 2]
        self.layer1 = _stage(width, width, blocks[0], norm)
        self.layer2, self.layer3, self.layer4 = (
            _stage(wide // 2, wide, count, norm)
            for wide, count in zip((2 * width, 4 * width, 8 * width), blocks[1:], strict=True)
        )
        self.pool = pool(own.pool, 8 * width, own.keypoints)
        self.head = None if imported and not imported.head else nn.Linear(self.pool.features, own.features)
        if self.head is None and own.features != self.pool.features:
            raise ValueError(
                f"{self._where}: features {own.features}, but the pooling has {self.pool.features}; set "
                "encoder.features to that, or encoder.head=true"
            )
        self.to(memory_format=torch.channels_last)  # pyright: ignore

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.conv1(self.colours(x)))
        x = F.max_pool2d(x, kernel_size=3, stride=2, padding=1).relu_()  # as relu then pooling, on a quarter of values
        pooled = self.pool(self.maps(x))
        return pooled if self.head is None else F.relu(self.head(pooled))

    def maps(self, x: Tensor) -> Tensor:
        """The four stages: [N, width, H, W] -> [N, 8 width, H / 8, W / 8]."""
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))

    def load_weights(self) -> None:
        """Load the published weights that the settings name, if any, into the convolutions; raises as `convolutions`.

        To be called once, before training: a checkpoint holds the weights themselves.
        """
        if self._weights is not None:
            own = {name: one for name, one in self.named_parameters() if _is_published(name)}
            with torch.no_grad():
                for name, value in convolutions(self._weights, own, self._where).items():
                    own[name].copy_(value)


class Block(nn.Module):
    """Two 3 x 3 convolutions with a residual connection: [N, C, H, W] -> [N, C', H / stride, W / stride]."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.norm1 = norm(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.norm2 = norm(channels_out)
        if stride == 1 and channels_in == channels_out:
            self.downsample = nn.Identity()
        else:
            shortcut = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, norm(channels_out))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm1(self.conv1(x)).relu_()
        return self.norm2(self.conv2(hidden)).add_(self.downsample(x)).relu_()


def resnet18(own: Resnet18Config, observations: Mapping[str, ObservationSpec], n_obs_steps: int) -> ImageEncoder:
    """The encoder with ResNet-18, 11.2 million parameters a camera."""

    def eye(channels: int, size: tuple[int, int]) -> Resnet:
        return Resnet(channels, size, 64, own, own.weights)

    return ImageEncoder(own, observations, n_obs_steps, eye)


def resnet18_narrow(own: ResnetConfig, observations: Mapping[str, ObservationSpec], n_obs_steps: int) -> ImageEncoder:
    """The encoder with a quarter of the widths of ResNet-18, 0.7 million parameters a camera."""
    return ImageEncoder(own, observations, n_obs_steps, lambda channels, size: Resnet(channels, size, 16, own))


def resnet_imported(own: ImportedConfig, observations: Mapping[str, ObservationSpec], n_obs_steps: int) -> ImageEncoder:
    """The encoder of an imported policy: a ResNet of 64 channels at first, with its own colours and normalisation."""
    return ImageEncoder(own, observations, n_obs_steps, lambda channels, size: Resnet(channels, size, 64, own))


def _stage(channels_in: int, channels_out: int, blocks: int, norm: Callable[[int], nn.Module]) -> nn.Sequential:
    first = Block(channels_in, channels_out, channels_out // channels_in, norm)  # a wider stage is half as large
    return nn.Sequential(first, *(Block(channels_out, channels_out, 1, norm) for _ in range(blocks - 1)))


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(max(1, channels // CHANNELS_PER_GROUP), channels)


def _is_published(name: str) -> bool:
    """Whether it is a convolution of torchvision's resnet18, as conv1.weight and layer2.0.downsample.0.weight are."""
    return re.search(r"(^|\.)(conv[12]|downsample\.0)\.weight$", name) is not None
