"""Normalisation, part of the policy's state: the statistics travel with the weights."""

import torch
from torch import Tensor, nn

from diffpolicy.codecs.codec import Samples

KINDS = ("limits", "gaussian")
BLOCK_ROWS = 16_384  # that are looked at at once: data may be larger than memory


class Normalizer(nn.Module):
    """encoded = scale * x + offset, per feature; [..., dim] -> [..., dim]. Of actions, a `Codec`.

    `limits` maps [minimum, maximum] of the data to [-1, 1]; `gaussian` maps mean and standard deviation to 0 and 1.
    A feature that is constant in the data maps to 0 and keeps its unit: neither direction divides by zero.

    Raises:
        ValueError: an unknown kind.
    """

    scale: Tensor  # [dim]
    offset: Tensor  # [dim]

    def __init__(self, dim: int, kind: str = "limits") -> None:
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"normalizer: kind {kind!r} must be one of {', '.join(KINDS)}")
        self.kind = kind
        self.register_buffer("scale", torch.full((dim,), torch.nan))
        self.register_buffer("offset", torch.full((dim,), torch.nan))

    @torch.no_grad()
    def fit(self, data: Samples) -> None:
        """Take the statistics of `data` [rows, dim].

        Raises:
            ValueError: no rows, a wrong dim, a value that is not finite.
        """
        if len(data.shape) != 2 or data.shape[0] == 0 or data.shape[1] != len(self.scale):
            raise ValueError(f"normalizer: data has shape {list(data.shape)}, expected [rows >= 1, {len(self.scale)}]")
        low, high, mean, deviation = _statistics(data)
        center, radius = ((high + low) / 2, (high - low) / 2) if self.kind == "limits" else (mean, deviation)
        # Less is not variation: a millionth of a unit, or float32's resolution of the values.
        resolution = 1e-6 * torch.maximum(low.abs(), high.abs()).clamp(min=1.0)
        scale = torch.where(high - low <= resolution, 1.0, 1.0 / radius)
        self.scale.copy_(scale)
        self.offset.copy_(-center * scale)

    @property
    def is_fitted(self) -> bool:
        """Whether there are usable statistics; copies to the host."""
        return bool((self.scale.isfinite() & self.offset.isfinite() & (self.scale > 0)).all())

    @property
    def limits(self) -> tuple[float, float] | None:
        """[-1, 1] for `limits`; unknown for `gaussian`."""
        return (-1.0, 1.0) if self.kind == "limits" else None

    @property
    def metric(self) -> Tensor:
        """[dim]."""
        return self.scale.square()

    def encoded_shape(self, horizon: int) -> tuple[int, int]:
        """As it is."""
        return horizon, len(self.scale)

    def encode(self, x: Tensor) -> Tensor:
        """Physical units -> normalised."""
        return torch.addcmul(self.offset, x, self.scale)

    def decode(self, encoded: Tensor) -> Tensor:
        """Normalised -> physical units."""
        return (encoded - self.offset) / self.scale

    def log_determinant(self, horizon: int) -> Tensor:
        """Of a trajectory."""
        return horizon * self.scale.abs().log().sum()


def _statistics(data: Samples) -> tuple[Tensor, Tensor, Tensor, Tensor]:
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
