"""The loss of a batch that several processes share."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from diffpolicy.policy.protocol import Policy
from diffpolicy.system.distributed import Ranks


class ShardedLoss(nn.Module):
    """The loss of this process's part of a batch, computed in `forward`, where DistributedDataParallel needs it."""

    def __init__(self, policy: Policy, ranks: Ranks) -> None:
        super().__init__()
        self.policy = policy
        self._part = (ranks.rank, ranks.count)

    def forward(
        self, observations: Mapping[str, Tensor], actions: Tensor, generator: torch.Generator, step: int | Tensor
    ) -> Tensor:
        return self.policy.loss(observations, actions, generator, self._part, step)
