"""Gaussian mixtures, an oracle whose density and clean estimate are known exactly.

Component k has weight p_k, mean m_k and variance v; noisy, it is N(alpha m_k, total) with total = alpha^2 v + sigma^2:

    E[clean | x] = alpha v / total x + sigma^2 / total sum_k w_k m_k
    w_k          ~ p_k exp((alpha x m_k - alpha^2 m_k^2 / 2) / total)
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diffpolicy.diffusion.samplers.table import Row


@dataclass(frozen=True)
class Mixture:
    """A Gaussian mixture over waypoints; a condition, if there is one, sets the weights.

    Attributes:
        means: [component, action].
        std: standard deviation of each component in every direction.
        weights: [component], or [batch, 1, component] for one set per condition.
    """

    means: Tensor
    std: float
    weights: Tensor

    def denoise(self, x: Tensor, row: Row) -> Tensor:
        """E[clean | x], [batch, horizon, action]."""
        total = self._total(row)
        weights = torch.softmax(self._fit(x, row), dim=-1)
        return (row.alpha * self.std**2 / total) * x + (row.sigma**2 / total) * (weights @ self.means)

    def log_density(self, x: Tensor, row: Row) -> Tensor:
        """Log-density of noisy waypoints at the row's level, [batch, horizon]."""
        total = self._total(row)
        gaussian = -0.5 * x.square().sum(-1) / total - 0.5 * x.shape[-1] * math.log(2 * math.pi * total)
        return gaussian + torch.logsumexp(self._fit(x, row), dim=-1)

    def quantiles(self, direction: Tensor, count: int) -> Tensor:
        """Quantiles (i + 1/2) / count of the projection on a unit direction [action], [count]; needs no condition."""
        centres = self.means @ direction
        low, high = float(centres.min() - 6 * self.std), float(centres.max() + 6 * self.std)
        grid = torch.linspace(low, high, 20_000, dtype=torch.float64)
        below = torch.special.ndtr((grid[:, None] - centres) / self.std) @ self.weights
        return grid[torch.searchsorted(below, (torch.arange(count).double() + 0.5) / count)]

    def wasserstein(self, samples: Tensor, directions: Tensor) -> float:
        """Sliced Wasserstein-1 distance of samples [count, action], the mean over directions [n, action]."""
        projected = (samples @ directions.T).sort(dim=0).values
        truth = torch.stack([self.quantiles(direction, len(samples)) for direction in directions], dim=1)
        return float((projected - truth).abs().mean())

    def _total(self, row: Row) -> float:
        return row.alpha**2 * self.std**2 + row.sigma**2

    def _fit(self, x: Tensor, row: Row) -> Tensor:
        """log(p_k N(x; alpha m_k, total)) up to a term that all components share, [batch, horizon, component]."""
        square = self.means.square().sum(-1)
        return self.weights.log() + (row.alpha * (x @ self.means.T) - 0.5 * row.alpha**2 * square) / self._total(row)


def _numbers(*values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _unit(vectors: Tensor) -> Tensor:
    return vectors / vectors.norm(dim=-1, keepdim=True)


def _draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


IN_1D = Mixture(_numbers([-0.7], [0.2], [0.8]), 0.1, _numbers(0.3, 0.5, 0.2))
IN_2D = Mixture(_numbers([-0.6, 0.3], [0.7, 0.1], [0.1, -0.8]), 0.14, _numbers(0.5, 0.3, 0.2))
IN_32D = Mixture(0.5 * _draw(4, 32), 0.1, _numbers(0.4, 0.3, 0.2, 0.1))

# Fixed directions for the sliced Wasserstein distance; in 1-D it is the distance itself.
DIRECTIONS = {1: _numbers([1.0]), 2: _unit(_numbers([1, 0], [1, 1], [0, 1], [-1, 1])), 32: _unit(_draw(8, 32))}
