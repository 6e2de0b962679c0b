"""Training and validation batches, cut by index from tensors that stay on the device.

A batch is a function of (seed, step): there is no sampler state to save, and a resumed run sees what an uninterrupted
one would have seen.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffpolicy.config import WindowConfig
from diffpolicy.data.demonstrations import Demonstrations
from diffpolicy.data.windows import window_indices


@dataclass(frozen=True)
class Batch:
    """observations {key: [batch, n_obs_steps, dim]}, actions [batch, horizon, action]."""

    observations: dict[str, Tensor]
    actions: Tensor


class WindowBatches:
    """Every window of some episodes, once an epoch, in an order drawn from (seed, epoch)."""

    def __init__(
        self,
        data: Demonstrations,
        episodes: np.ndarray,
        window: WindowConfig,
        batch_size: int,
        seed: int,
        device: torch.device,
    ) -> None:
        pad_before, pad_after = window.n_obs_steps - 1, window.n_action_steps - 1
        index = window_indices(data.episode_ends, window.horizon, pad_before, pad_after, episodes)
        self._index = torch.from_numpy(index).to(device)
        self._actions = data.actions.to(device)
        self._observations = {key: value.to(device) for key, value in data.observations.items()}
        self._n_obs_steps = window.n_obs_steps
        self._batch_size = min(batch_size, len(index))
        self._seed = seed
        self._epoch = -1

    @property
    def batch_size(self) -> int:
        """At most the number of windows."""
        return self._batch_size

    @property
    def n_windows(self) -> int:
        return len(self._index)

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches; a remainder waits for another epoch's order."""
        return self.n_windows // self._batch_size

    def batch(self, step: int, rows: slice = slice(None)) -> Batch:
        """The batch of optimiser step `step`, or some of its rows."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(mixed_seed(self._seed, epoch))
            self._order = torch.randperm(self.n_windows, generator=generator).to(self._index.device)
            self._epoch = epoch
        start = position * self._batch_size
        return self._cut(self._order[start : start + self._batch_size][rows])

    def first(self, n_windows: int) -> Batch:
        """The same windows at every call, evenly spread over the episodes."""
        count = min(n_windows, self.n_windows)
        return self._cut(torch.linspace(0, self.n_windows - 1, count).long().to(self._index.device))

    def _cut(self, windows: Tensor) -> Batch:
        rows = self._index[windows]  # [batch, horizon]
        past = rows[:, : self._n_obs_steps]
        return Batch({key: value[past] for key, value in self._observations.items()}, self._actions[rows])


def mixed_seed(*numbers: int) -> int:
    """One 63-bit seed from several numbers; any change of any of them gives an unrelated stream."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
