"""Noise that is correlated over the horizon, so that a noisy plan is as smooth as a plan.

It is an autoregressive process of order 1 with unit variance: waypoints i and j have correlation r^|i - j|.

    e[0] = z[0],    e[i] = r e[i - 1] + sqrt(1 - r^2) z[i],    z standard normal

Every formula of a table is linear in x, the clean estimate and the noise, and holds for noise of any covariance, as
long as the start and all later draws have that of training. A Langevin step then uses this covariance as its
preconditioner.
"""

import torch
from torch import Tensor


def correlated(noise: Tensor, correlation: float) -> Tensor:
    """White noise [..., horizon, action] -> noise with `correlation` (r) from waypoint to waypoint, same shape.

    For correlation 0 it is `noise` itself.
    """
    if correlation == 0.0:
        return noise
    innovation = (1.0 - correlation**2) ** 0.5
    first, *others = noise.unbind(-2)
    found = [first]
    for fresh in others:  # a product with a matrix could depend on the size of the batch in its last bits
        found.append(torch.add(innovation * fresh, found[-1], alpha=correlation))
    return torch.stack(found, dim=-2)


def whitened(noise: Tensor, correlation: float) -> Tensor:
    """The inverse of `correlated`."""
    if correlation == 0.0:
        return noise
    innovation = (1.0 - correlation**2) ** 0.5
    fresh = (noise[..., 1:, :] - correlation * noise[..., :-1, :]) / innovation
    return torch.cat([noise[..., :1, :], fresh], dim=-2)
