"""Normalisation whose statistics are part of the policy's state and are saved with the weights."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from diffpolicy.codecs.codec import DataArray

KINDS = ("limits", "gaussian", "quantiles", "none")
BLOCK_ROWS = 16_384  # rows processed at a time: data may be larger than memory
QUANTILE_ROWS = 1_000_000  # quantiles are those of at most about twice as many rows, evenly spread


@dataclass
class NormalizerConfig:
    """Settings of a normaliser: a feature whose range is below `range_eps` counts as constant."""

    name: str = "limits"
    range_eps: float = 1e-4


@dataclass
class QuantilesConfig(NormalizerConfig):
    """Settings of the normaliser `quantiles`, which maps the quantiles `low` and `high` to -1 and 1."""

    name: str = "quantiles"
    low: float = 0.01
    high: float = 0.99


class Normalizer(nn.Module):
    """Affine map of each feature, encoded = scale * x + offset: [..., dim] -> [..., dim]. A `Codec` for actions.

    - `limits` maps [minimum, maximum] of the data to [-1, 1].
    - `gaussian` maps the mean to 0 and the standard deviation to 1.
    - `quantiles` maps two quantiles to -1 and 1, so a few outliers do not squeeze all other values together.
    - `none` changes nothing, constant features included.

    A feature that is constant in the data maps to 0 and keeps its unit; it always decodes to that constant, whatever
    was denoised. Constant means a range below `range_eps` (1e-4 as published, Chi et al. 2023), or below the
    resolution of float32 at the feature's values. The constant is the middle of the range.

    Raises:
        ValueError: the kind is unknown, or a setting is out of range.
    """

    is_invertible = True
    scale: Tensor  # [dim]
    offset: Tensor  # [dim]
    is_constant: Tensor  # bool [dim]

    def __init__(self, dim: int, settings: NormalizerConfig | str = "limits") -> None:
        super().__init__()
        self.settings = settings = _checked(settings)
        self.kind = settings.name
        self.register_buffer("scale", torch.full((dim,), torch.nan))
        self.register_buffer("offset", torch.full((dim,), torch.nan))
        self.register_buffer("is_constant", torch.zeros(dim, dtype=torch.bool))

    @torch.no_grad()
    def fit(self, data: DataArray) -> None:
        """Compute the statistics of `data` [rows, dim].

        Raises:
            ValueError: there are no rows, dim is wrong, or a value is not finite.
        """
        if len(data.shape) != 2 or data.shape[0] == 0 or data.shape[1] != len(self.scale):
            raise ValueError(f"normalizer: data has shape {list(data.shape)}, expected [rows >= 1, {len(self.scale)}]")
        low, high, mean, deviation = _statistics(data)
        middle, radius = (high + low) / 2, (high - low) / 2
        is_constant = _is_constant(low, high, self.settings.range_eps)
        center = middle
        if self.kind == "gaussian":
            center, radius = mean, deviation
        elif isinstance(self.settings, QuantilesConfig):
            center, radius = _between(*_quantiles(data, self.settings), middle, radius)
        elif self.kind == "none":
            center, radius = torch.zeros_like(middle), torch.ones_like(radius)
            is_constant = torch.zeros_like(is_constant)
        scale = torch.where(is_constant, 1.0, 1.0 / radius)
        self.scale.copy_(scale)
        self.offset.copy_(-torch.where(is_constant, middle, center) * scale)
        self.is_constant.copy_(is_constant)

    @property
    def is_fitted(self) -> bool:
        """Whether it has usable statistics. Reading this copies them to the host."""
        return bool((self.scale.isfinite() & self.offset.isfinite() & (self.scale > 0)).all())

    @property
    def limits(self) -> tuple[float, float] | None:
        """(-1, 1) for `limits`; None for the other kinds, whose encoded data have no known limits."""
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
        """Normalised -> physical units, [..., dim]. A constant feature becomes its constant."""
        return (encoded.masked_fill(self.is_constant, 0.0) - self.offset) / self.scale

    def log_determinant(self, horizon: int) -> Tensor:
        """log |det(d encoded / d actions)| of a trajectory of `horizon` actions, a scalar."""
        return horizon * self.scale.abs().log().sum()


def _is_constant(low: Tensor, high: Tensor, range_eps: float) -> Tensor:
    """Whether features with these limits count as constant: a range below `range_eps` or float32's resolution."""
    resolution = 1e-6 * torch.maximum(low.abs(), high.abs())
    return (high - low < range_eps) | (high - low <= resolution)


def _checked(settings: NormalizerConfig | str) -> NormalizerConfig:
    if isinstance(settings, str):
        settings = QuantilesConfig() if settings == "quantiles" else NormalizerConfig(settings)
    if settings.name not in KINDS:
        raise ValueError(f"normalizer: kind {settings.name!r} must be one of {', '.join(KINDS)}")
    if not (math.isfinite(settings.range_eps) and settings.range_eps >= 0):
        raise ValueError(f"normalizer: range_eps {settings.range_eps} must be at least 0")
    if isinstance(settings, QuantilesConfig) and not 0 <= settings.low < settings.high <= 1:
        raise ValueError(
            f"normalizer: quantiles low {settings.low} and high {settings.high} must be 0 <= low < high <= 1"
        )
    return settings


def _between(low: Tensor, high: Tensor, middle: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """Center and radius of [low, high]; where the quantiles are one, those of the limits instead."""
    is_one = _is_constant(low, high, 0.0)
    return torch.where(is_one, middle, (high + low) / 2), torch.where(is_one, radius, (high - low) / 2)


def _quantiles(data: DataArray, settings: QuantilesConfig) -> tuple[Tensor, Tensor]:
    """The two quantiles of each feature, float64 [dim]."""
    every = max(1, data.shape[0] // QUANTILE_ROWS)
    kept, rows = [], 0
    for block in data.split(BLOCK_ROWS):
        kept.append(block[-rows % every :: every].double().numpy())
        rows += len(block)
    low, high = np.quantile(np.concatenate(kept), [settings.low, settings.high], axis=0)
    return torch.from_numpy(low), torch.from_numpy(high)


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
