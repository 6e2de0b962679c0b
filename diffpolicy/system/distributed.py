"""Processes that work as one, started by torchrun: who they are, and what they tell each other.

Numbers travel as tensors, never as pickled objects. One process alone is the same thing with a count of 1.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from diffpolicy.system.device import choose_device

Item = TypeVar("Item")


@dataclass(frozen=True)
class Ranks:
    """This process among `count`; local_rank counts those of its machine."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        """The one that writes."""
        return self.rank == 0

    def rows(self, total: int) -> slice:
        """This process' part of `total` rows.

        Raises:
            ValueError: they cannot be shared equally.
        """
        if total % self.count:
            raise ValueError(
                f"torchrun: a batch of {total} does not divide among {self.count} processes; "
                f"expected a multiple of {self.count} (trainer.batch_size, at most the number of windows)"
            )
        each = total // self.count
        return slice(self.rank * each, (self.rank + 1) * each)

    def shard(self, items: Sequence[Item]) -> Sequence[Item]:
        """Every count-th item, from this process' rank on.

        Raises:
            ValueError: there are fewer items than processes.
        """
        if len(items) < self.count:
            raise ValueError(f"torchrun: {self.count} processes for {len(items)} episodes; expected at most as many")
        return items[self.rank :: self.count]

    def device(self, name: str) -> torch.device:
        """As `choose_device`; where there are several processes, each has a GPU of its machine to itself.

        Raises:
            ValueError: a device that is not there.
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
        """`module`, whose backward averages the gradients over all processes."""
        return module if self.count == 1 else DistributedDataParallel(module)

    def total(self, values: Tensor) -> Tensor:
        """The sum over all processes, on the CPU; every process must ask for it, with values of the same shape."""
        return self._reduced(values, distributed.ReduceOp.SUM)

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all processes; likewise."""
        return self.total(values) / self.count

    def largest(self, value: int) -> int:
        """The largest of all processes' numbers; likewise. Returns when the last process has asked."""
        return int(self._reduced(torch.tensor(value), distributed.ReduceOp.MAX))

    def _reduced(self, values: Tensor, operation: distributed.ReduceOp.RedOpType) -> Tensor:
        values = values.detach().cpu()
        if self.count > 1:
            values = values.clone()
            distributed.all_reduce(values, op=operation)
        return values


ALONE = Ranks()


@contextmanager
def joined() -> Iterator[Ranks]:
    """Join the processes that torchrun started; without torchrun, be alone.

    GPUs exchange gradients by NCCL; all else goes over the CPU by gloo.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1 or "LOCAL_RANK" not in os.environ:  # a scheduler's WORLD_SIZE alone says nothing
        yield ALONE
        return
    ranks = Ranks(int(os.environ["RANK"]), count, int(os.environ["LOCAL_RANK"]))
    if torch.cuda.is_available() and ranks.local_rank < torch.cuda.device_count():
        torch.cuda.set_device(ranks.local_rank)
    distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield ranks
    finally:
        distributed.destroy_process_group()
