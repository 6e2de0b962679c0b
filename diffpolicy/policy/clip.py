"""The two simplest projections of a clean trajectory: none, and a clip to limits."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def identity(clean: Tensor, row: Any, step: int) -> Tensor:
    """Return the clean estimate unchanged."""
    return clean


def clip(low: Tensor | float, high: Tensor | float) -> Callable[[Tensor, Any, int], Tensor]:
    """A projection that clamps every waypoint to [low, high], which are scalars or tensors [action].

    Raises:
        ValueError: low is above high, or a limit is NaN.
    """
    if not isinstance(low, Tensor) and not isinstance(high, Tensor):  # a third of the time, at every reverse step
        if not low <= high:
            raise ValueError(f"clip: low {low} must not be above high {high}, nor NaN")
        return lambda clean, row, step: clean.clamp(low, high)
    low_limit, high_limit = torch.as_tensor(low), torch.as_tensor(high)
    if not bool((low_limit <= high_limit).all()):
        raise ValueError(f"clip: low {low_limit.tolist()} must not be above high {high_limit.tolist()}, nor NaN")

    def project(clean: Tensor, row: Any, step: int) -> Tensor:
        return clean.clamp(low_limit.to(clean), high_limit.to(clean))

    return project
