"""The probability-flow ODE: a deterministic map from trajectories to noise and back (Song et al. 2021b, eq. 13).

All schedules follow the same path at different scales. Legend:

    angle   arctan(sigma / alpha): close to 0 at the clean trajectory, pi / 2 at pure noise
    z       x / hypot(alpha, sigma), which is cos(angle) * clean + sin(angle) * noise
    u       log(tan(angle / 2)): 0 at pure noise, about log(sigma / alpha / 2) at the clean end

The ODE is dz/du = cos(angle) * z - clean. It is smooth and finite, even at a last level without signal, and runs
between the lowest and the highest trained level. A DDIM step joins the lowest level to the clean trajectory. Nothing is
projected here: use it to analyse a policy, not to act.
"""

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffpolicy.diffusion.adaptive import solve_adaptively
from diffpolicy.diffusion.reverse import Denoise
from diffpolicy.diffusion.samplers.table import Row, rows_at
from diffpolicy.diffusion.schedule import FloatArray, Schedule

Slope = Callable[[Tensor, Row], Tensor]
"""(z, level) -> dz/du."""


def scale(level: Row) -> float:
    """The factor x / z at a level, hypot(alpha, sigma)."""
    return math.hypot(level.alpha, level.sigma)


@dataclass(frozen=True)
class Flow:
    """The probability-flow ODE of a denoiser on a schedule."""

    denoise: Denoise
    schedule: Schedule

    def ends(self) -> tuple[float, float]:
        """u at the lowest and at the highest trained level."""
        levels = self.schedule.levels
        u = np.log(np.tan(np.arctan2(levels.sigma, levels.alpha) / 2.0))
        return float(u[0]), float(u[-1])

    def end_levels(self) -> tuple[Row, Row]:
        """The lowest and the highest trained level."""
        first, last = rows_at(self.schedule.levels[np.array([0, -1])])
        return first, last

    def levels(self, u: FloatArray) -> tuple[Row, ...]:
        """The levels at u [n]."""
        tangent = np.exp(np.minimum(u, 0.0))  # tan(angle / 2)
        with np.errstate(divide="ignore"):
            at = self.schedule.at(np.log((1.0 - tangent) * (1.0 + tangent) / (2.0 * tangent)))
        return rows_at(at)

    def slope(self, z: Tensor, level: Row) -> Tensor:
        """dz/du at z [batch, horizon, action], shaped like z."""
        return level.alpha / scale(level) * z - self.denoise(scale(level) * z, level)

    def to_noise(self, clean: Tensor, steps: int, method: str = "rk4") -> Tensor:
        """Map a clean trajectory [batch, horizon, action] to noise of unit variance (DDIM inversion).

        The step to the lowest level takes the noise estimate of the clean trajectory there, as DDIM inversion does.
        """
        _check(method, steps)
        (low, high), (first, last) = self.ends(), self.end_levels()
        x = first.alpha * clean
        x = x + first.alpha * (clean - self.denoise(x, first))  # sigma times the noise estimate, moved to `clean`
        return solve(self, self.slope, x / scale(first), low, high, steps, method) * (scale(last) / last.sigma)

    def to_clean(self, noise: Tensor, steps: int, method: str = "rk4") -> Tensor:
        """The inverse of `to_noise`; it ends with the clean estimate at the lowest level, as DDIM does."""
        (low, high), (first, last) = self.ends(), self.end_levels()
        z = solve(self, self.slope, noise * (last.sigma / scale(last)), high, low, steps, method)
        return self.denoise(z * scale(first), first)


def solve(flow: Flow, slope: Slope, z: Tensor, start: float, end: float, steps: int, method: str = "rk4") -> Tensor:
    """Integrate z from u = start to u = end.

    Args:
        slope: `flow.slope`, or a function that integrates additional columns as well.
        method: ddim, rk4, or adaptive (scipy's DOP853, which ignores `steps`).

    Raises:
        ValueError: the method is unknown, or steps is below 1.
    """
    _check(method, steps)
    return METHODS[method](flow, slope, z, start, end, steps)


def _check(method: str, steps: int) -> None:
    if method not in METHODS:
        raise ValueError(f"probability-flow ODE: method {method!r} is unknown, expected one of {', '.join(METHODS)}")
    if steps < 1:
        raise ValueError(f"probability-flow ODE: steps {steps} must be at least 1")


def ddim(flow: Flow, slope: Slope, z: Tensor, start: float, end: float, steps: int) -> Tensor:
    """DDIM steps (Song et al. 2021a, eq. 13), order 1: each one keeps the clean estimate and the noise fixed."""
    levels = flow.levels(np.linspace(start, end, steps + 1))
    for now, after in itertools.pairwise(levels):
        cosine = now.alpha / scale(now)
        a = (after.sigma / scale(after)) / (now.sigma / scale(now))
        clean = cosine * z - slope(z, now)
        z = a * z + (after.alpha / scale(after) - a * cosine) * clean
    return z


def rk4(flow: Flow, slope: Slope, z: Tensor, start: float, end: float, steps: int) -> Tensor:
    """The classical Runge-Kutta method of order 4, with 4 evaluations per step."""
    levels = flow.levels(np.linspace(start, end, 2 * steps + 1))
    h = (end - start) / steps
    for now, middle, after in zip(levels[:-1:2], levels[1::2], levels[2::2], strict=True):
        first = slope(z, now)
        second = slope(z + 0.5 * h * first, middle)
        third = slope(z + 0.5 * h * second, middle)
        z = z + h / 6.0 * (first + 2.0 * second + 2.0 * third + slope(z + h * third, after))
    return z


def adaptive(flow: Flow, slope: Slope, z: Tensor, start: float, end: float, steps: int) -> Tensor:
    """DOP853, order 8, with one adaptive step size for the whole batch; `steps` is ignored."""
    low, high = min(start, end), max(start, end)
    return solve_adaptively(lambda u, z: slope(z, flow.levels(np.array([min(max(u, low), high)]))[0]), z, start, end)


METHODS: Mapping[str, Callable[[Flow, Slope, Tensor, float, float, int], Tensor]] = {
    "ddim": ddim,
    "rk4": rk4,
    "adaptive": adaptive,
}


def check_fraction(fraction: float) -> None:
    """Raise ValueError unless 0 <= fraction <= 1."""
    if not 0.0 <= fraction <= 1.0:
        raise ValueError(f"interpolation: fraction {fraction} must be between 0 and 1")


def great_circle(first: Tensor, second: Tensor, fraction: float) -> Tensor:
    """Spherical interpolation between two noises [batch, ...], which keeps the result as likely as its ends.

    Raises:
        ValueError: the fraction is not between 0 and 1.
    """
    check_fraction(fraction)
    axes = tuple(range(1, first.dim()))
    lengths = torch.sqrt(torch.sum(first**2, axes, keepdim=True) * torch.sum(second**2, axes, keepdim=True))
    cosine = torch.sum(first * second, axes, keepdim=True) / lengths
    angle = torch.arccos(torch.clamp(cosine, 1e-6 - 1.0, 1.0 - 1e-6))
    on_first, on_second = torch.sin((1.0 - fraction) * angle), torch.sin(fraction * angle)
    return (on_first * first + on_second * second) / torch.sin(angle)
