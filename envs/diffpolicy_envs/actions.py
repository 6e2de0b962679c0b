"""Validates actions: a target position, checked and clipped."""

import math
from typing import Any

import numpy as np


def checked_target(action: Any, limit_px: float) -> tuple[float, float]:
    """The action as two floats, clipped to [0, limit_px].

    Raises:
        ValueError: the shape is not (2,), or a number is not finite.
    """
    numbers = action.tolist() if isinstance(action, np.ndarray) else np.asarray(action, np.float64).tolist()
    if not isinstance(numbers, list) or len(numbers) != 2 or isinstance(numbers[0], list):
        raise ValueError(f"action has shape {np.shape(action)}; expected (2,)")
    x, y = numbers
    if not (math.isfinite(x) and math.isfinite(y)):
        raise ValueError(f"action is {numbers}; expected two finite numbers (px)")
    return min(max(x, 0.0), limit_px), min(max(y, 0.0), limit_px)
