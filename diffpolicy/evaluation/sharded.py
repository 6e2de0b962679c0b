"""Episodes dealt out to the processes that torchrun started, and the results put together."""

from collections.abc import Callable, Sequence

import torch

from diffpolicy.evaluation.rollout import Episode
from diffpolicy.system.distributed import Ranks


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
