"""Training and validation batches, indexed from tensors that stay on the device, or read from disk.

A batch is a function of (seed, step). There is no sampler state to save, and a resumed run sees the same batches as an
uninterrupted one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from diffpolicy.data.demonstrations import Demonstrations
from diffpolicy.data.windows import padded_steps, window_indices
from diffpolicy.policy.settings import WindowConfig
from diffpolicy.system.time_limits import LimitsConfig
from diffpolicy.training.mixture import weighted_order
from diffpolicy.training.read_ahead import ReadAhead, Step


@dataclass(frozen=True)
class Batch:
    """A batch of windows.

    Attributes:
        observations: {key: [batch, n_obs_steps, dim]}; images uint8 [batch, n_obs_steps, height, width, 3].
        actions: [batch, horizon, action].
        counts: float [batch, horizon], 0 for actions that repeat the first or last one of an episode beyond its ends
            and 1 for the others; None if all count.
        auxiliary: what the encoder is taught besides, {array: [batch, n_obs_steps, dim]}.
    """

    observations: dict[str, Tensor]
    actions: Tensor
    counts: Tensor | None = None
    auxiliary: dict[str, Tensor] = field(default_factory=dict)

    def rows(self, rows: slice) -> "Batch":
        """Some of its windows."""
        observations, auxiliary = (
            {key: value[rows] for key, value in part.items()} for part in (self.observations, self.auxiliary)
        )
        counts = None if self.counts is None else self.counts[rows]
        return Batch(observations, self.actions[rows], counts, auxiliary)


class WindowBatches:
    """Every window of the given episodes, once per epoch, in an order drawn from (seed, epoch).

    With `weights`, one for each of several data sets, an epoch has as many windows, in proportion to the weights. With
    `mask_padding`, batches say which actions count.

    Observations that stay on disk are read ahead by `workers` processes, which may take `limit_s` for a batch; `close`
    ends them.

    Raises:
        ValueError: no window fits any episode.
    """

    def __init__(
        self,
        data: Demonstrations,
        episodes: np.ndarray,
        window: WindowConfig,
        batch_size: int,
        seed: int,
        device: torch.device,
        workers: int = 0,
        limit_s: float = LimitsConfig.data_s,
        weights: Sequence[float] | None = None,
        mask_padding: bool = False,
    ) -> None:
        pads = window.n_obs_steps - 1, window.n_action_steps - 1
        index = window_indices(data.episode_ends, window.horizon, *pads, episodes)
        self._counts = None
        if mask_padding:
            padded = padded_steps(data.episode_ends, window.horizon, *pads, episodes)
            self._counts = torch.from_numpy(~padded).float().to(device)
        self.n_windows = len(index)
        self.batch_size = min(batch_size, self.n_windows)
        sets = None
        if weights is not None and data.set_ends:
            set_of = np.searchsorted(data.set_ends, index[:, 0], side="right")
            sets = [torch.from_numpy(np.flatnonzero(set_of == number)) for number in range(len(data.set_ends))], weights
        self._order = _Order(self.n_windows, self.batch_size, seed, device, sets)
        self._index = torch.from_numpy(index).to(device)
        self._actions = data.actions.to(device)
        self._n_obs_steps = window.n_obs_steps
        self._resident = {k: v.to(device) for k, v in data.observations.items() if isinstance(v, Tensor)}
        self._auxiliary = {k: v.to(device) for k, v in data.auxiliary.items()}
        self._streamed = {k: v for k, v in data.observations.items() if not isinstance(v, Tensor)}
        self._past = torch.from_numpy(index[:, : window.n_obs_steps].copy())
        self._order_ahead = _Order(self.n_windows, self.batch_size, seed, torch.device("cpu"), sets)
        self._ahead = ReadAhead(self._streamed, self._rows_of, workers, limit_s)

    @property
    def action_windows(self) -> "ActionWindows":
        """The actions of all windows, without observations."""
        return ActionWindows(self._actions, self._index)

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches per epoch; an epoch leaves out the windows that remain."""
        return self._order.steps_per_epoch

    def batch(self, step: int, rows: slice = slice(None)) -> Batch:
        """The batch of optimiser step `step`, or some of its rows.

        Raises:
            OSError: observations cannot be read.
        """
        streamed = self._ahead.read((step, rows)) if self._streamed else {}
        return self._cut(self._order.windows(step)[rows], streamed)

    def first(self, n_windows: int) -> Batch:
        """At most `n_windows` windows, evenly spread over the episodes; the same ones at every call."""
        windows = torch.linspace(0, self.n_windows - 1, min(n_windows, self.n_windows)).long()
        streamed = {key: value[self._past[windows]] for key, value in self._streamed.items()}
        return self._cut(windows.to(self._index.device), streamed)

    def close(self) -> None:
        """End the worker processes; the next batch starts them again."""
        self._ahead.close()

    def _rows_of(self, step: Step) -> Tensor:
        """The data set rows that the observations of a step need, [batch, n_obs_steps], on the CPU."""
        return self._past[self._order_ahead.windows(step[0])[step[1]]]

    def _cut(self, windows: Tensor, streamed: Mapping[str, Tensor]) -> Batch:
        rows = self._index[windows]  # [batch, horizon]
        past = rows[:, : self._n_obs_steps]
        resident = {key: value[past] for key, value in self._resident.items()}
        moved = {key: value.to(rows.device) for key, value in streamed.items()}
        counts = None if self._counts is None else self._counts[windows]
        auxiliary = {key: value[past] for key, value in self._auxiliary.items()}
        return Batch(resident | moved, self._actions[rows], counts, auxiliary)


@dataclass(frozen=True)
class ActionWindows:
    """Actions [n_windows, horizon, action] in physical units, cut when they are asked for; `Windows` of a codec."""

    actions: Tensor
    index: Tensor

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, windows: Tensor, /) -> Tensor:
        return self.actions[self.index[windows.to(self.index.device)]]


class _Order:
    """Maps a step to the windows in its batch."""

    def __init__(
        self,
        n_windows: int,
        batch_size: int,
        seed: int,
        device: torch.device,
        sets: tuple[Sequence[Tensor], Sequence[float]] | None = None,
    ) -> None:
        self._sets = sets  # (windows of every data set, their weights)
        self._n_windows, self._batch_size, self._seed, self._device = n_windows, batch_size, seed, device
        self._epoch = -1

    @property
    def steps_per_epoch(self) -> int:
        return self._n_windows // self._batch_size

    def windows(self, step: int) -> Tensor:
        """Indices of the windows in the batch of a step, [batch_size]."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(mixed_seed(self._seed, epoch))
            if self._sets is None:
                order = torch.randperm(self._n_windows, generator=generator)
            else:
                order = weighted_order(*self._sets, generator)
            self._order = order.to(self._device)
            self._epoch = epoch
        start = position * self._batch_size
        return self._order[start : start + self._batch_size]


def mixed_seed(*numbers: int) -> int:
    """Combine several numbers into one 63-bit seed; changing any of them gives an unrelated stream."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
