"""The loss of a batch that several processes share."""

from typing import Any

import torch
from torch import Tensor, nn

from diffpolicy.policy.protocol import Policy
from diffpolicy.system.distributed import Ranks
from diffpolicy.system.parts import Part
from diffpolicy.training.batches import Batch


class ShardedLoss(nn.Module):
    """The loss of this process's part of a batch, computed in `forward`, where DistributedDataParallel needs it."""

    def __init__(self, policy: Policy, ranks: Ranks) -> None:
        super().__init__()
        self.policy = policy
        self._part = (ranks.rank, ranks.count)

    def forward(self, batch: Batch, generator: torch.Generator, step: int | Tensor) -> Tensor:
        return batch_loss(self.policy, batch, generator, self._part, step)


def batch_loss(policy: Policy, batch: Batch, generator: torch.Generator, part: Part, step: int | Tensor) -> Tensor:
    """The policy's loss of a batch, a scalar.

    Only where actions are masked must the policy take `counts`, and `auxiliary` only where it is taught more.
    """
    given: dict[str, Any] = {} if batch.counts is None else {"counts": batch.counts}
    if batch.auxiliary:
        given["auxiliary"] = batch.auxiliary
    return policy.loss(batch.observations, batch.actions, generator, part, step, **given)
