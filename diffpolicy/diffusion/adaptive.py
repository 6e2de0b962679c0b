# pyright: basic
# scipy has no type stubs.
"""An adaptive solver of ordinary differential equations: scipy's, an optional dependency."""

from collections.abc import Callable

import torch
from torch import Tensor


def solve_adaptively(slope: Callable[[float, Tensor], Tensor], y: Tensor, start: float, end: float) -> Tensor:
    """y at `end` of dy/du = slope(u, y), by DOP853 at relative tolerance 1e-6.

    Raises:
        ImportError: scipy is not installed.
        ValueError: no solution at this tolerance.
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
