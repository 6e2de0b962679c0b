"""A Gaussian mixture whose clean estimate is known exactly: the oracle that no network can be.

Component k has mean m_k and variance v; noisy, it is N(alpha m_k, alpha^2 v + sigma^2), so that
E[clean | x] = sum_k w_k(x) (m_k + alpha v / (alpha^2 v + sigma^2) (x - alpha m_k)).
"""

import torch
from torch import Tensor

from diffpolicy.diffusion.samplers.table import Row

MEANS = torch.tensor([[-0.6, 0.3], [0.7, 0.1], [0.1, -0.8]], dtype=torch.float64)  # [component, action]
VARIANCE = 0.02


def exact_denoise(x: Tensor, row: Row) -> Tensor:
    """E[clean | x], [batch, horizon, 2]; every waypoint is drawn from the mixture."""
    means, total = row.alpha * MEANS.to(x), row.alpha**2 * VARIANCE + row.sigma**2
    difference = x[..., None, :] - means  # [batch, horizon, component, 2]
    weight = torch.softmax(-difference.square().sum(-1) / (2 * total), dim=-1)
    estimate = MEANS.to(x) + row.alpha * VARIANCE / total * difference
    return (weight[..., None] * estimate).sum(-2)


def sample_mixture(count: int, generator: torch.Generator) -> Tensor:
    """[count, 2]"""
    component = torch.randint(len(MEANS), (count,), generator=generator)
    noise = torch.randn(count, 2, generator=generator, dtype=torch.float64)
    return MEANS[component] + VARIANCE**0.5 * noise
