"""The likelihood of a trajectory: its exact value by the probability-flow ODE, and a lower bound by the ELBO.

Densities are those of normalised trajectories, in nats. Legend: u and z as in `ode`; div, the divergence of dz/du;
snr, alpha^2 / sigma^2.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffpolicy.diffusion.ode import Flow, scale, solve
from diffpolicy.diffusion.reverse import Denoise
from diffpolicy.diffusion.samplers.table import Row, rows_at
from diffpolicy.diffusion.schedule import Schedule
from diffpolicy.diffusion.weighting import elbo_weights


@dataclass(frozen=True)
class LogDensity:
    """Log-density of plans [batch], in nats, with respect to normalised actions and to actions in physical units."""

    normalized: Tensor
    physical: Tensor


def gaussian_log_density(x: Tensor, std: float) -> Tensor:
    """log N(x; 0, std^2) for x [batch, ...], in nats [batch]."""
    squares = x.flatten(1).square().sum(1) / std**2
    return -0.5 * squares - x[0].numel() * (math.log(std) + 0.5 * math.log(2.0 * math.pi))


def log_likelihood(
    flow: Flow,
    x: Tensor,
    steps: int,
    probes: Tensor | None = None,
    terminal: Callable[[Tensor], Tensor] | None = None,
    method: str = "rk4",
) -> Tensor:
    """log p [batch] of x [batch, horizon, action] at the lowest trained level (Song et al. 2021b, eq. 39).

    Args:
        flow: the ODE; its denoiser is called on n copies of the batch, for n directions of the divergence.
        steps: steps of `method`.
        probes: [n, batch, horizon, action] of +1 and -1 for Hutchinson's estimate of the divergence. By default the
            divergence is exact, with n = horizon * action.
        terminal: log-density of x at the last level; N(0, sigma^2) by default.
        method: rk4 or adaptive, see `solve`. ddim steps do not integrate the divergence.

    Raises:
        ValueError: the method is unknown, or steps is below 1.
    """
    if method not in ("rk4", "adaptive"):
        raise ValueError(f"log_likelihood: method {method!r} is unknown, expected rk4 or adaptive")
    check_white(flow.schedule)
    (low, high), (first, last) = flow.ends(), flow.end_levels()
    exact = torch.eye(x[0].numel(), dtype=x.dtype, device=x.device).reshape(-1, 1, *x.shape[1:])
    directions = exact.expand(-1, *x.shape) if probes is None else probes
    share = 1.0 if probes is None else 1.0 / len(probes)

    def slope(state: Tensor, level: Row) -> Tensor:
        dz, div = _slope_and_divergence(flow, state[:, :-1].reshape(x.shape), level, directions)
        return torch.cat([dz.flatten(1), share * div[:, None]], dim=1)

    z = (x / scale(first)).flatten(1)
    state = solve(flow, slope, torch.cat([z, torch.zeros_like(z[:, :1])], dim=1), low, high, steps, method)
    end = (scale(last) * state[:, :-1]).reshape(x.shape)
    density = gaussian_log_density(end, last.sigma) if terminal is None else terminal(end)
    return density + state[:, -1] + x[0].numel() * math.log(scale(last) / scale(first))


def elbo(schedule: Schedule, denoise: Denoise, clean: Tensor, draws: int, generator: torch.Generator) -> Tensor:
    """A lower bound of log p(clean) under the ancestral chain, in nats [batch], estimated by `draws` draws per level.

    This is the evidence lower bound of Kingma et al. 2021, eq. 11 to 13. The estimate is unbiased, so it is a bound on
    average over the draws. It bounds the density of the data only on average over the data.

    The decoder at the first level is Gaussian, with the clean estimate as its mean and variance sigma^2 / alpha^2.

    Args:
        clean: normalised trajectories [batch, horizon, action].
        generator: on the CPU.

    Raises:
        ValueError: draws is below 1.
    """
    if draws < 1:
        raise ValueError(f"elbo: draws {draws} must be at least 1")
    check_white(schedule)
    levels, weights = schedule.levels, elbo_weights(schedule.levels)
    size = clean[0].numel()
    prior = 0.5 * (float(levels.snr[-1]) * clean.flatten(1).square().sum(1))
    bound = -prior - 0.5 * size * math.log(2.0 * math.pi / float(levels.snr[0]))
    for row, weight in zip(rows_at(levels), weights.tolist(), strict=True):
        noise = torch.randn((draws, *clean.shape), generator=generator, dtype=clean.dtype).to(clean.device)
        noisy = row.alpha * clean + row.sigma * noise
        error = torch.stack([denoise(one, row) - clean for one in noisy]).flatten(2).square().sum(2).mean(0)
        bound = bound - weight * error
    return bound


def check_white(schedule: Schedule) -> None:
    """Raise ValueError if the noise of training is correlated, of which these formulas know nothing."""
    if schedule.correlation != 0.0:
        raise ValueError(
            f"likelihood: the policy was trained with noise of correlation {schedule.correlation}, expected white "
            "noise; train with diffusion.noise_correlation=0"
        )


def _slope_and_divergence(flow: Flow, z: Tensor, level: Row, directions: Tensor) -> tuple[Tensor, Tensor]:
    """dz/du, shaped like z, and the sum over directions v [n, batch, ...] of v^T (d slope / dz) v [batch].

    All directions run in one batch of n copies, because samples do not interact in the network.
    """
    with torch.enable_grad():
        copies = z.detach().expand(directions.shape).flatten(0, 1).requires_grad_()
        slope = flow.slope(copies, level)
        (product,) = torch.autograd.grad(slope, copies, directions.flatten(0, 1))
    along = (product * directions.flatten(0, 1)).flatten(1).sum(1).reshape(directions.shape[:2])
    return slope.detach()[: len(z)], along.sum(0)
