"""The trained levels as columns of numbers on the device, and the steps that objectives take between them.

Legend: x = alpha * clean + sigma * noise; clean = skip * x + out * output, what a network's output says.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from diffpolicy.diffusion.objectives.objective import ConditionedNetwork
from diffpolicy.diffusion.schedule import FloatArray


class LevelColumns(NamedTuple):
    """The values of noise levels that training needs, one column each.

    Attributes:
        on_clean, on_noise: the target is on_clean * clean + on_noise * noise.
        weight: weight of the squared error.
        share: probability that a draw falls on this level or an earlier one.
        skip, out: the clean estimate is skip * x + out * output.
    """

    alpha: Tensor
    sigma: Tensor
    time: Tensor
    input_scale: Tensor
    on_clean: Tensor
    on_noise: Tensor
    weight: Tensor
    share: Tensor
    skip: Tensor
    out: Tensor

    def noisy(self, clean: Tensor, noise: Tensor) -> Tensor:
        """The noisy trajectory at these levels."""
        return self.alpha * clean + self.sigma * noise

    def output(self, network: ConditionedNetwork, x: Tensor, stop: "LevelColumns | None" = None) -> Tensor:
        """The network's output for x at these levels; `stop` is where the step ends, for a network that sees it."""
        times = [one.time.flatten() for one in (self, stop) if one is not None]
        return network(self.input_scale * x, *times)

    def estimate(self, network: ConditionedNetwork, x: Tensor, stop: "LevelColumns | None" = None) -> Tensor:
        """The network's clean estimate of x at these levels."""
        return self.skip * x + self.out * self.output(network, x, stop)

    def step(self, x: Tensor, clean: Tensor, after: "LevelColumns") -> Tensor:
        """The DDIM step from x at these levels to `after`, given the clean estimate (Song et al. 2021a, eq. 12)."""
        rest = after.sigma / self.sigma
        return rest * x + (after.alpha - rest * self.alpha) * clean

    def clean_of_step(self, x: Tensor, end: Tensor, after: "LevelColumns") -> Tensor:
        """The clean estimate with which `step` leads from x to `end`; `after` must have less noise."""
        rest = after.sigma / self.sigma
        return (end - rest * x) / (after.alpha - rest * self.alpha)

    def output_of_clean(self, clean: Tensor, x: Tensor) -> Tensor:
        """The network's output that gives this clean estimate of x."""
        return (clean - self.skip * x) / self.out


class LevelTable(nn.Module):
    """The columns of all levels in one tensor [levels, columns], so that a batch needs a single look-up."""

    values: Tensor

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.register_buffer("values", values, persistent=False)

    @classmethod
    def ending_clean(cls, table: "LevelTable") -> "LevelTable":
        """The table with one more row, the clean level, at which a step may end."""
        clean = torch.zeros_like(table.values[:1])
        clean[:, LevelColumns._fields.index("alpha")] = 1.0
        return cls(torch.cat([table.values, clean]))

    @classmethod
    def of(cls, *columns: FloatArray) -> "LevelTable":
        """The table with these columns, each [levels], in the order of `LevelColumns`; in float32."""
        return cls(torch.tensor(np.stack(columns, axis=-1).tolist()))

    def __len__(self) -> int:
        return len(self.values)

    @property
    def columns(self) -> LevelColumns:
        """The columns, each [levels]."""
        return LevelColumns(*self.values.unbind(dim=1))

    def at(self, level: Tensor) -> LevelColumns:
        """The columns at the levels `level` [batch], each [batch, 1, 1]."""
        return LevelColumns(*self.values[level, :, None, None].unbind(dim=1))

    def of_waypoints(self, level: Tensor) -> LevelColumns:
        """The columns at levels `level` [batch, horizon], each [batch, horizon, 1]."""
        return LevelColumns(*self.values[level, :, None].unbind(dim=-2))


def pseudo_huber(error: Tensor, counts: Tensor | None = None) -> Tensor:
    """sqrt(|error|^2 + c^2) - c of each trajectory [B, H, A] with c = 0.00054 sqrt(H A): [B, 1, 1].

    This is Song & Dhariwal 2024, eq. 8 and section 3.3. `counts` [B, H] multiplies the squared error of each waypoint.
    """
    squared = error.square() if counts is None else error.square() * counts[..., None]
    small = 0.00054 * error[0].numel() ** 0.5
    return (squared.sum(dim=(1, 2), keepdim=True) + small**2).sqrt() - small
