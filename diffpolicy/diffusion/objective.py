"""The training objective: a schedule, and what the network is to predict at its levels."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from diffpolicy.diffusion.parameterization import Parameterization
from diffpolicy.diffusion.reverse import Denoise
from diffpolicy.diffusion.samplers.table import Row
from diffpolicy.diffusion.schedule import Schedule


class Network(Protocol):
    """x [batch, horizon, action], time [batch], condition [batch, features] -> output, shaped like x."""

    def __call__(self, x: Tensor, time: Tensor, condition: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Objective:
    """Predict `parameterization`'s target at the levels of `schedule` (Ho et al. 2020, eq. 14).

    Raises:
        ValueError: the parameterization is singular at a level of the schedule.
    """

    schedule: Schedule
    parameterization: Parameterization

    def __post_init__(self) -> None:
        if self.parameterization.needs_signal and not (self.schedule.levels.alpha > 0).all():
            raise ValueError(
                "objective: the schedule has a level with alpha 0, where noise tells nothing of the clean "
                "trajectory; use the parameterization clean or v"
            )

    def table(self) -> Tensor:
        """What `loss` needs of every level, float32 [levels, 6]: alpha, sigma, time, input_scale, target pair."""
        levels = self.schedule.levels
        target = map(self.parameterization.target, levels.alpha.tolist(), levels.sigma.tolist())
        columns = (levels.alpha, levels.sigma, levels.time, levels.input_scale, *zip(*target, strict=True))
        return torch.stack([torch.as_tensor(column, dtype=torch.float64) for column in columns], dim=-1).float()

    @staticmethod
    def loss(network: Network, table: Tensor, clean: Tensor, noise: Tensor, level: Tensor, condition: Tensor) -> Tensor:
        """Mean squared error of the network's output against its target, a scalar.

        Args:
            network: under training.
            table: `table()`, on the device of the data.
            clean: normalised trajectories [batch, horizon, action].
            noise: standard normal, shaped like clean.
            level: indices into the schedule [batch].
            condition: encoded observations [batch, features].
        """
        alpha, sigma, time, input_scale, on_clean, on_noise = table[level, :, None, None].unbind(dim=1)
        noisy = alpha * clean + sigma * noise
        output = network(input_scale * noisy, time.flatten(), condition)
        return torch.nn.functional.mse_loss(output, on_clean * clean + on_noise * noise)

    def denoiser(self, network: Network, condition: Tensor) -> Denoise:
        """The clean estimate [batch, horizon, action] of a noisy x at a row's level."""

        def denoise(x: Tensor, row: Row) -> Tensor:
            skip, out = self.parameterization.clean_from_output(row.alpha, row.sigma)
            time = torch.full((len(x),), row.time, device=x.device)
            return skip * x + out * network(row.input_scale * x, time, condition)

        return denoise
