"""Normalisation, part of the policy's state: the statistics travel with the weights."""

from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

KINDS = ("limits", "gaussian")
BLOCK_ROWS = 16_384  # that are looked at at once: data may be larger than memory


class Rows(Protocol):
    """A tensor [rows, dim], or what stays on disk and is read block by block."""

    @property
    def shape(self) -> Sequence[int]: ...

    def split(self, size: int, /) -> Iterable[Tensor]: ...


class Normalizer(nn.Module):
    """normalised = scale * x + offset, per feature; [..., dim] -> [..., dim].

    `limits` maps [minimum, maximum] of the data to [-1, 1]; `gaussian` maps mean and standard deviation to 0 and 1.
    A feature that is constant in the data maps to 0 and keeps its unit: neither direction divides by zero.
    """

    scale: Tensor  # [dim]
    offset: Tensor  # [dim]

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("scale", torch.full((dim,), torch.nan))
        self.register_buffer("offset", torch.full((dim,), torch.nan))

    @torch.no_grad()
    def fit(self, data: Rows, kind: str) -> None:
        """Take the statistics of `data` [rows, dim].

        Raises:
            ValueError: no rows, a wrong dim, a value that is not finite, an unknown kind.
        """
        if kind not in KINDS:
            raise ValueError(f"normalizer: kind {kind!r} must be one of {', '.join(KINDS)}")
        if len(data.shape) != 2 or data.shape[0] == 0 or data.shape[1] != len(self.scale):
            raise ValueError(f"normalizer: data has shape {list(data.shape)}, expected [rows >= 1, {len(self.scale)}]")
        low, high, mean, deviation = _statistics(data)
        center, radius = ((high + low) / 2, (high - low) / 2) if kind == "limits" else (mean, deviation)
        # Less is not variation: a millionth of a unit, or float32's resolution of the values.
        resolution = 1e-6 * torch.maximum(low.abs(), high.abs()).clamp(min=1.0)
        scale = torch.where(high - low <= resolution, 1.0, 1.0 / radius)
        self.scale.copy_(scale)
        self.offset.copy_(-center * scale)

    @property
    def is_fitted(self) -> bool:
        """Whether there are usable statistics; copies to the host."""
        return bool((self.scale.isfinite() & self.offset.isfinite() & (self.scale > 0)).all())

    def forward(self, x: Tensor) -> Tensor:
        """Physical units -> normalised."""
        return torch.addcmul(self.offset, x, self.scale)

    def inverse(self, normalised: Tensor) -> Tensor:
        """Normalised -> physical units."""
        return (normalised - self.offset) / self.scale


def _statistics(data: Rows) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Minimum, maximum, mean and standard deviation of the rows, float64 [dim] (joined as in Chan et al. 1979)."""
    rows = 0
    low = high = mean = squares = torch.zeros((), dtype=torch.float64)
    for block in data.split(BLOCK_ROWS):
        block = block.double()
        if not bool(block.isfinite().all()):
            raise ValueError("normalizer: data has NaN or infinite values")
        low = torch.minimum(low, block.amin(0)) if rows else block.amin(0)
        high = torch.maximum(high, block.amax(0)) if rows else block.amax(0)
        share = len(block) / (rows + len(block))
        shift = block.mean(0) - mean
        squares = squares + (block - block.mean(0)).square().sum(0) + shift.square() * rows * share
        mean = mean + shift * share
        rows += len(block)
    return low, high, mean, (squares / rows).sqrt()
