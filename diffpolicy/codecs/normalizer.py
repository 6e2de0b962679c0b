"""Normalisation whose statistics are part of the policy's state and are saved with the weights."""

import torch
from torch import Tensor, nn

from diffpolicy.codecs.codec import DataArray

KINDS = ("limits", "gaussian")
BLOCK_ROWS = 16_384  # rows processed at a time: data may be larger than memory


class Normalizer(nn.Module):
    """Affine map of each feature, encoded = scale * x + offset: [..., dim] -> [..., dim]. A `Codec` for actions.

    `limits` maps [minimum, maximum] of the data to [-1, 1]. `gaussian` maps the mean to 0 and the standard deviation
    to 1. A feature that is constant in the data maps to 0 and keeps its unit, so neither direction divides by zero.

    Raises:
        ValueError: the kind is unknown.
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
    def fit(self, data: DataArray) -> None:
        """Compute the statistics of `data` [rows, dim].

        Raises:
            ValueError: there are no rows, dim is wrong, or a value is not finite.
        """
        if len(data.shape) != 2 or data.shape[0] == 0 or data.shape[1] != len(self.scale):
            raise ValueError(f"normalizer: data has shape {list(data.shape)}, expected [rows >= 1, {len(self.scale)}]")
        low, high, mean, deviation = _statistics(data)
        center, radius = ((high + low) / 2, (high - low) / 2) if self.kind == "limits" else (mean, deviation)
        # A smaller range counts as constant: a millionth of a unit, or the float32 resolution of the values.
        resolution = 1e-6 * torch.maximum(low.abs(), high.abs()).clamp(min=1.0)
        scale = torch.where(high - low <= resolution, 1.0, 1.0 / radius)
        self.scale.copy_(scale)
        self.offset.copy_(-center * scale)

    @property
    def is_fitted(self) -> bool:
        """Whether it has usable statistics. Reading this copies them to the host."""
        return bool((self.scale.isfinite() & self.offset.isfinite() & (self.scale > 0)).all())

    @property
    def limits(self) -> tuple[float, float] | None:
        """(-1, 1) for `limits`; None for `gaussian`, whose encoded data have no known limits."""
        return (-1.0, 1.0) if self.kind == "limits" else None

    @property
    def metric(self) -> Tensor:
        """Squared length in encoded units of one physical unit of each feature, [dim]."""
        return self.scale.square()

    def encoded_shape(self, horizon: int) -> tuple[int, int]:
        """(horizon, dim): the shape does not change."""
        return horizon, len(self.scale)

    def encode(self, x: Tensor) -> Tensor:
        """Physical units -> normalised, [..., dim]."""
        return torch.addcmul(self.offset, x, self.scale)

    def decode(self, encoded: Tensor) -> Tensor:
        """Normalised -> physical units, [..., dim]."""
        return (encoded - self.offset) / self.scale

    def log_determinant(self, horizon: int) -> Tensor:
        """log |det(d encoded / d actions)| of a trajectory of `horizon` actions, a scalar."""
        return horizon * self.scale.abs().log().sum()


def _statistics(data: DataArray) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Minimum, maximum, mean and standard deviation of the rows, float64 [dim].

    Blocks are combined as in Chan et al. 1979.
    """
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
