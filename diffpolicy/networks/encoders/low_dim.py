"""The encoder that concatenates low-dimensional observations into one conditioning vector."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from diffpolicy.networks.condition import Condition, ConditionShape
from diffpolicy.networks.observation import ObservationSpec
from diffpolicy.system.parts import WHOLE, Part


class LowDimEncoder(nn.Module):
    """Flatten normalised vectors over time and keys; an `Encoder`.

    {key: [batch, n_obs_steps, features]} -> vector [batch, n_obs_steps * sum of features]. Within a step the keys are
    in alphabetical order.

    Raises:
        ValueError: an observation is not a vector.
    """

    def __init__(self, observations: Mapping[str, ObservationSpec], n_obs_steps: int) -> None:
        super().__init__()
        for key, spec in observations.items():
            if spec.kind != "vector":
                raise ValueError(f"encoder low_dim: observation {key!r} is an {spec.kind}, expected vectors only")
        self.keys = sorted(observations)
        self.output = ConditionShape(vector=(n_obs_steps * sum(spec.features for spec in observations.values()),))

    def augmented(
        self, observation: Mapping[str, Tensor], generator: torch.Generator, part: Part = WHOLE
    ) -> Mapping[str, Tensor]:
        """The same observation: vectors are not augmented."""
        return observation

    def forward(self, observation: Mapping[str, Tensor]) -> Condition:
        return Condition(vector=torch.cat([observation[key] for key in self.keys], dim=-1).flatten(1))
