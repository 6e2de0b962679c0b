"""Batches and episodes dealt out to the processes that torchrun started, and the results put together."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from diffpolicy.distributed import Ranks
from diffpolicy.policy import DiffusionPolicy
from diffpolicy.rollout import Episode


class ShardedLoss(nn.Module):
    """The loss of this process' part of a batch, as a forward: there is where DistributedDataParallel acts."""

    def __init__(self, policy: DiffusionPolicy, ranks: Ranks) -> None:
        super().__init__()
        self.policy = policy
        self._part = (ranks.rank, ranks.count)

    def forward(self, observations: Mapping[str, Tensor], actions: Tensor, generator: torch.Generator) -> Tensor:
        return self.policy.loss(observations, actions, generator, self._part)


def sharded(ranks: Ranks, seeds: Sequence[int], run: Callable[[Sequence[int]], list[Episode]]) -> list[Episode]:
    """One episode per seed, in the order of the seeds, on every process; each has run its share of them.

    Raises:
        ValueError: fewer seeds than processes.
        ChildProcessError: another process' share failed; there it is what failed that is raised.
    """
    shard = ranks.shard(range(len(seeds)))
    error: Exception | None = None
    table = torch.zeros(len(seeds), 3, dtype=torch.float64)  # zeros where others fill in: the sum is exact
    try:
        for index, episode in zip(shard, run([seeds[index] for index in shard]), strict=True):
            table[index] = torch.tensor([episode.score, episode.success, episode.length], dtype=torch.float64)
    except Exception as caught:
        error = caught
    if ranks.largest(int(error is not None)):  # all leave together: none waits for one that has gone
        raise error or ChildProcessError("the evaluation failed in another process")
    rows = zip(seeds, ranks.total(table).tolist(), strict=True)
    return [Episode(int(seed), score, bool(success), int(length)) for seed, (score, success, length) in rows]
