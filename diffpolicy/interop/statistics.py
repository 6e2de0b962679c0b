"""Statistics of other libraries as our normalisers: the scale and offset of each feature."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

QUANTILES_OF_ALL = {"name": "quantiles", "low": 0.0, "high": 1.0}  # as limits, but for clipping


def limits(low: Tensor, high: Tensor, is_pinned: bool) -> dict[str, Tensor]:
    """[low, high] to [-1, 1].

    Args:
        is_pinned: whether a feature without a range decodes to its one value, as that of an action must. Otherwise the
            one value is encoded as -1, as LeRobot does.
    """
    low, high = low.double(), high.double()
    is_constant = high <= low
    scale = 2.0 / torch.where(is_constant, 2.0, high - low)
    is_constant &= is_pinned
    offset = torch.where(is_constant, -low, -1.0 - low * scale)
    return {"scale": scale.float(), "offset": offset.float(), "is_constant": is_constant}


def gaussian(mean: Tensor, std: Tensor, eps: float = 0.0) -> dict[str, Tensor]:
    """The mean to 0 and the standard deviation to 1; raises ValueError if a deviation is not above 0."""
    scale = 1.0 / (std.double() + eps)
    if not bool((scale.isfinite() & (scale > 0)).all()):
        raise ValueError(f"statistics: standard deviations {std.tolist()} must be above 0")
    offset = -mean.double() * scale
    return {"scale": scale.float(), "offset": offset.float(), "is_constant": torch.zeros(len(std), dtype=torch.bool)}


def linear(scale: Tensor, offset: Tensor) -> dict[str, Tensor]:
    """A scale and an offset as they are; no feature is pinned to a constant."""
    return {
        "scale": scale.float(),
        "offset": offset.float(),
        "is_constant": torch.zeros(len(scale), dtype=torch.bool),
    }


def identity(features: int) -> dict[str, Tensor]:
    """Nothing is changed."""
    return linear(torch.ones(features), torch.zeros(features))


def action_kind(is_clipped: bool) -> Any:
    """The normaliser of actions: `limits` clips estimates to [-1, 1], `quantiles` from 0 to 1 does not."""
    return "limits" if is_clipped else dict(QUANTILES_OF_ALL)


def as_tensors(prefix: str, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The buffers of a normaliser by their full names."""
    return {f"{prefix}.{name}": value for name, value in values.items()}
