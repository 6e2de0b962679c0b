"""The probability-flow ODE: from trajectories to noise and back without chance (Song et al. 2021b, eq. 13).

Every schedule is the same path at another scale. Legend:

    angle   arctan(sigma / alpha): above 0 where the trajectory is clean, pi / 2 where only noise is left
    z       x / hypot(alpha, sigma), that is cos(angle) * clean + sin(angle) * noise
    u       log(tan(angle / 2)): 0 at the noise, about log(sigma / alpha / 2) at the clean end

Along it dz/du = cos(angle) * z - clean, smooth and finite up to a last level without signal. It runs between the lowest
trained level and the highest. Nothing is projected here: this is for looking at a policy, not for acting with it.
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
    """x / z"""
    return math.hypot(level.alpha, level.sigma)


@dataclass(frozen=True)
class Flow:
    """The ODE of one denoiser on a schedule."""

    denoise: Denoise
    schedule: Schedule

    def ends(self) -> tuple[float, float]:
        """u at the lowest and at the highest level."""
        levels = self.schedule.levels
        u = np.log(np.tan(np.arctan2(levels.sigma, levels.alpha) / 2.0))
        return float(u[0]), float(u[-1])

    def end_levels(self) -> tuple[Row, Row]:
        """The lowest and the highest level."""
        first, last = rows_at(self.schedule.levels[np.array([0, -1])])
        return first, last

    def levels(self, u: FloatArray) -> tuple[Row, ...]:
        """The levels at u [n]."""
        tangent = np.exp(np.minimum(u, 0.0))  # of half the angle
        with np.errstate(divide="ignore"):
            at = self.schedule.at(np.log((1.0 - tangent) * (1.0 + tangent) / (2.0 * tangent)))
        return rows_at(at)

    def slope(self, z: Tensor, level: Row) -> Tensor:
        """dz/du, shaped like z."""
        return level.alpha / scale(level) * z - self.denoise(scale(level) * z, level)

    def to_noise(self, x: Tensor, steps: int, method: str = "rk4") -> Tensor:
        """From x [batch, horizon, action] at the lowest level to noise of unit variance (DDIM inversion)."""
        (low, high), (first, last) = self.ends(), self.end_levels()
        return solve(self, self.slope, x / scale(first), low, high, steps, method) * (scale(last) / last.sigma)

    def to_clean(self, noise: Tensor, steps: int, method: str = "rk4") -> Tensor:
        """The inverse of `to_noise`."""
        (low, high), (first, last) = self.ends(), self.end_levels()
        return solve(self, self.slope, noise * (last.sigma / scale(last)), high, low, steps, method) * scale(first)


def solve(flow: Flow, slope: Slope, z: Tensor, start: float, end: float, steps: int, method: str = "rk4") -> Tensor:
    """z at u = end from z at u = start.

    Args:
        slope: of z; `flow.slope`, or one that carries more along.
        method: ddim, rk4, or adaptive (scipy's DOP853, where steps counts for nothing).
    """
    if method not in METHODS:
        raise ValueError(f"probability-flow ODE: method {method!r} is unknown, expected one of {', '.join(METHODS)}")
    if steps < 1:
        raise ValueError(f"probability-flow ODE: steps {steps} must be at least 1")
    return METHODS[method](flow, slope, z, start, end, steps)


def ddim(flow: Flow, slope: Slope, z: Tensor, start: float, end: float, steps: int) -> Tensor:
    """DDIM steps (Song et al. 2021a, eq. 13), order 1: the clean estimate and the noise stand still during one."""
    levels = flow.levels(np.linspace(start, end, steps + 1))
    for now, after in itertools.pairwise(levels):
        cosine = now.alpha / scale(now)
        a = (after.sigma / scale(after)) / (now.sigma / scale(now))
        clean = cosine * z - slope(z, now)
        z = a * z + (after.alpha / scale(after) - a * cosine) * clean
    return z


def rk4(flow: Flow, slope: Slope, z: Tensor, start: float, end: float, steps: int) -> Tensor:
    """The classical Runge-Kutta method of order 4, 4 evaluations a step."""
    levels = flow.levels(np.linspace(start, end, 2 * steps + 1))
    h = (end - start) / steps
    for now, middle, after in zip(levels[:-1:2], levels[1::2], levels[2::2], strict=True):
        first = slope(z, now)
        second = slope(z + 0.5 * h * first, middle)
        third = slope(z + 0.5 * h * second, middle)
        z = z + h / 6.0 * (first + 2.0 * second + 2.0 * third + slope(z + h * third, after))
    return z


def adaptive(flow: Flow, slope: Slope, z: Tensor, start: float, end: float, steps: int) -> Tensor:
    """Order 8 with the step size by error, for all of the batch together; `steps` counts for nothing."""
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
    """Between two noises [batch, ...], on the circle that joins them, so that the result is as likely as they are."""
    check_fraction(fraction)
    axes = tuple(range(1, first.dim()))
    lengths = torch.sqrt(torch.sum(first**2, axes, keepdim=True) * torch.sum(second**2, axes, keepdim=True))
    cosine = torch.sum(first * second, axes, keepdim=True) / lengths
    angle = torch.arccos(torch.clamp(cosine, -1.0, 1.0 - 1e-6))
    on_first, on_second = torch.sin((1.0 - fraction) * angle), torch.sin(fraction * angle)
    return (on_first * first + on_second * second) / torch.sin(angle)
