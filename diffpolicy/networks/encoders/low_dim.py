"""The encoder that concatenates low-dimensional observations, into one vector and into a token for each step."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from diffpolicy.networks.condition import Condition, ConditionShape
from diffpolicy.networks.observation import ObservationSpec


class LowDimEncoder(nn.Module):
    """Concatenate normalised vectors, within a step in alphabetical order of their keys; an `Encoder`.

    {key: [batch, n_obs_steps, features]} -> tokens [batch, n_obs_steps, sum of features], and the same numbers as a
    vector [batch, n_obs_steps * sum of features].

    Raises:
        ValueError: an observation is not a vector.
    """

    def __init__(self, observations: Mapping[str, ObservationSpec], n_obs_steps: int) -> None:
        super().__init__()
        for key, spec in observations.items():
            if spec.kind != "vector":
                raise ValueError(f"encoder low_dim: observation {key!r} is an {spec.kind}, expected vectors only")
        self.keys = sorted(observations)
        features = sum(spec.features for spec in observations.values())
        self.output = ConditionShape(vector=(n_obs_steps * features,), tokens=(n_obs_steps, features))

    def forward(self, observation: Mapping[str, Tensor]) -> Condition:
        tokens = torch.cat([observation[key] for key in self.keys], dim=-1)
        return Condition(vector=tokens.flatten(1), tokens=tokens)
