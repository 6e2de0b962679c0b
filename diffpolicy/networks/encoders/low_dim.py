"""Observation encoders: a window of observations to one conditioning vector."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class LowDimEncoder(nn.Module):
    """Normalised low-dimensional observations, flattened over time and keys.

    {key: [batch, n_obs_steps, dim]} -> [batch, n_obs_steps * sum of dims]; within a step the keys are in
    alphabetical order.
    """

    def __init__(self, observations: Mapping[str, int], n_obs_steps: int) -> None:
        super().__init__()
        self.keys = sorted(observations)
        self.condition_dim = n_obs_steps * sum(observations.values())

    def forward(self, observation: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([observation[key] for key in self.keys], dim=-1).flatten(1)
