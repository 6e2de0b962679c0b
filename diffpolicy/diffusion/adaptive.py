# pyright: basic
# scipy has no type stubs.
"""An adaptive solver for ordinary differential equations. It uses scipy, an optional dependency."""

from collections.abc import Callable

import torch
from torch import Tensor


def solve_adaptively(slope: Callable[[float, Tensor], Tensor], y: Tensor, start: float, end: float) -> Tensor:
    """Solve dy/du = slope(u, y) from u = `start` to `end` with DOP853 at relative tolerance 1e-6.

    Args:
        slope: (u, y) -> dy/du, shaped like y.
        y: the value at `start`, of any shape.

    Returns:
        y at `end`, with the shape, dtype and device of `y`.

    Raises:
        ImportError: scipy is not installed.
        ValueError: the solver did not reach this tolerance.
    """
    try:
        from scipy.integrate import solve_ivp
    except ImportError as error:
        raise ImportError("probability-flow ODE: method adaptive needs scipy: pip install scipy") from error

    def flat_slope(u, flat):
        now = torch.as_tensor(flat, dtype=y.dtype, device=y.device).reshape(y.shape)
        return slope(float(u), now).detach().cpu().double().numpy().ravel()

    initial = y.detach().cpu().double().numpy().ravel()
    solution = solve_ivp(flat_slope, (start, end), initial, method="DOP853", rtol=1e-6, atol=1e-8)
    if not solution.success:
        raise ValueError(f"probability-flow ODE: no solution: {solution.message}")
    return torch.as_tensor(solution.y[:, -1], dtype=y.dtype, device=y.device).reshape(y.shape)
