"""Splits episodes among the processes that torchrun started, and gathers the results."""

from collections.abc import Callable, Sequence

import torch

from diffpolicy.evaluation.rollout import Episode
from diffpolicy.system.distributed import Ranks


def sharded(ranks: Ranks, seeds: Sequence[int], run: Callable[[Sequence[int]], list[Episode]]) -> list[Episode]:
    """Run one episode per seed. Every process runs its share and gets all results in the order of the seeds.

    Raises:
        ValueError: there are fewer seeds than processes.
        ChildProcessError: the share of another process failed. That process raises the original error.
    """
    shard = ranks.shard(range(len(seeds)))
    error: Exception | None = None
    table = torch.zeros(len(seeds), 3, dtype=torch.float64)  # zeros in the rows of other processes, so the sum is exact
    try:
        for index, episode in zip(shard, run([seeds[index] for index in shard]), strict=True):
            table[index] = torch.tensor([episode.score, episode.success, episode.length], dtype=torch.float64)
    except Exception as caught:
        error = caught
    if ranks.largest(int(error is not None)):  # all leave together, so none waits for a process that has gone
        raise error or ChildProcessError("the evaluation failed in another process")
    rows = zip(seeds, ranks.total(table).tolist(), strict=True)
    return [Episode(int(seed), score, bool(success), int(length)) for seed, (score, success, length) in rows]
