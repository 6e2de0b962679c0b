"""Processes started by torchrun: their ranks, and how they exchange numbers.

Numbers are sent as tensors, never as pickled objects. A single process is the same case with a count of 1.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from diffpolicy.system.device import choose_device
from diffpolicy.system.time_limits import LimitsConfig

Item = TypeVar("Item")


@dataclass(frozen=True)
class Ranks:
    """The rank of this process among `count` processes; local_rank is its rank on its machine."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files and logs."""
        return self.rank == 0

    def rows(self, total: int) -> slice:
        """This process's share of `total` rows.

        Raises:
            ValueError: the rows do not divide equally.
        """
        if total % self.count:
            raise ValueError(
                f"torchrun: a batch of {total} does not divide among {self.count} processes; "
                f"expected a multiple of {self.count} (trainer.batch_size, at most the number of windows)"
            )
        each = total // self.count
        return slice(self.rank * each, (self.rank + 1) * each)

    def shard(self, items: Sequence[Item]) -> Sequence[Item]:
        """Every count-th item, starting at this process's rank.

        Raises:
            ValueError: there are fewer items than processes.
        """
        if len(items) < self.count:
            raise ValueError(f"torchrun: {self.count} processes for {len(items)} episodes; expected at most as many")
        return items[self.rank :: self.count]

    def device(self, name: str) -> torch.device:
        """Like `choose_device`, but each of several processes gets its own GPU of its machine.

        Raises:
            ValueError: the device is not available, or several processes cannot share it.
        """
        device = choose_device(name)
        if self.count == 1 or device.type == "cpu":
            return device
        if device.type != "cuda" or device.index is not None:
            raise ValueError(f"device: {name!r} cannot be shared by {self.count} processes; expected cpu, cuda or auto")
        found = torch.cuda.device_count()
        if self.local_rank >= found:
            raise ValueError(f"torchrun: process {self.local_rank} of this machine has no GPU, there are {found}")
        return torch.device("cuda", self.local_rank)

    def parallel(self, module: nn.Module) -> nn.Module:
        """Wrap `module` so that its backward pass averages the gradients over all processes."""
        return module if self.count == 1 else DistributedDataParallel(module)

    def total(self, values: Tensor) -> Tensor:
        """The sum over all processes, on the CPU; every process must call it, with values of the same shape."""
        return self._reduced(values, distributed.ReduceOp.SUM)

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all processes; every process must call it, as for `total`."""
        return self.total(values) / self.count

    def largest(self, value: int) -> int:
        """The largest `value` of any process; returns once every process has called it."""
        return int(self._reduced(torch.tensor(value), distributed.ReduceOp.MAX))

    def _reduced(self, values: Tensor, operation: distributed.ReduceOp.RedOpType) -> Tensor:
        values = values.detach().cpu()
        if self.count > 1:
            values = values.clone()
            with lost_ranks_named(self):
                distributed.all_reduce(values, op=operation)
        return values


ALONE = Ranks()


@contextmanager
def lost_ranks_named(ranks: Ranks) -> Iterator[None]:
    """Turn torch's error about another process that hangs or has ended into ChildProcessError."""
    try:
        yield
    except RuntimeError as error:
        if ranks.count == 1 or not any(word in str(error) for word in ("gloo", "NCCL", "Timed out", "Connection")):
            raise
        reason = str(error).strip().splitlines()[0]
        raise ChildProcessError(
            f"torchrun: process {ranks.rank} of {ranks.count} lost the others: one of them has ended, or has not "
            f"answered within limits.ranks_s ({reason})"
        ) from error


@contextmanager
def joined(limit_s: float = LimitsConfig.ranks_s) -> Iterator[Ranks]:
    """Join the process group that torchrun started; without torchrun, yield `ALONE`.

    GPUs exchange gradients through NCCL. Everything else goes through the CPU and gloo. A process that waits longer
    than `limit_s` for the others raises ChildProcessError.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1 or "LOCAL_RANK" not in os.environ:  # a cluster scheduler may set WORLD_SIZE too
        yield ALONE
        return
    ranks = Ranks(int(os.environ["RANK"]), count, int(os.environ["LOCAL_RANK"]))
    if torch.cuda.is_available() and ranks.local_rank < torch.cuda.device_count():
        torch.cuda.set_device(ranks.local_rank)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend, timeout=timedelta(seconds=limit_s))
    try:
        yield ranks
    finally:
        distributed.destroy_process_group()
