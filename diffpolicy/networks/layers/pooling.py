"""What turns a map of features into one vector: its average, or where each feature is found.

Shape legend: N images, C channels, H and W height and width, K keypoints.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from diffpolicy.system.tables import lookup


class AveragePool(nn.Module):
    """The mean over the image: [N, C, H, W] -> [N, C]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.features = channels

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3))


class SpatialSoftmax(nn.Module):
    """Where K learned features are found: [N, C, H, W] -> [N, 2 K], x and y of each in [-1, 1].

    A 1 x 1 convolution gives K maps. The softmax of a map over all places is the probability of each, and the keypoint
    is their mean (Levine et al. 2016, section 4.1; temperature 1).
    """

    def __init__(self, channels: int, keypoints: int) -> None:
        super().__init__()
        self.maps = nn.Conv2d(channels, keypoints, kernel_size=1)
        self.features = 2 * keypoints

    def forward(self, x: Tensor) -> Tensor:
        maps = self.maps(x)
        probability = maps.flatten(2).softmax(dim=-1).unflatten(2, maps.shape[2:])
        rows, columns = (_places(size, probability) for size in maps.shape[2:])
        along_x, along_y = probability.sum(dim=2) @ columns, probability.sum(dim=3) @ rows  # [N, K]
        return torch.stack([along_x, along_y], dim=-1).flatten(1)


def _places(size: int, like: Tensor) -> Tensor:
    """The middles of the first to the last pixel, from -1 to 1; 0 for a single one."""
    if size == 1:
        return like.new_zeros(1)
    return torch.linspace(-1.0, 1.0, size, device=like.device, dtype=like.dtype)


def pool(name: str, channels: int, keypoints: int) -> AveragePool | SpatialSoftmax:
    """The layer called `name`; raises ValueError if there is none."""
    table: Mapping[str, Callable[[], AveragePool | SpatialSoftmax]] = {
        "keypoints": lambda: SpatialSoftmax(channels, keypoints),
        "average": lambda: AveragePool(channels),
    }
    return lookup(table, "pool", name)()
