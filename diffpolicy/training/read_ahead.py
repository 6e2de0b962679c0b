"""Reads observations from disk in worker processes, ahead of the step that needs them.

It uses processes, not threads: reading many small pieces spends much of its time in Python code, which holds the GIL.
"""

from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future

import numpy as np
import torch
from torch import Tensor

from diffpolicy.data.stream import StreamedRows
from diffpolicy.system.pool import Pool
from diffpolicy.system.time_limits import LimitsConfig

AHEAD = 2  # batches per worker that are being read or are waiting

Step = tuple[int, slice]
"""(optimiser step, rows of its batch)."""

Arrays = dict[str, np.ndarray]
"""{key: [batch, n_obs_steps, *row]}; tensors would be sent through shared memory, which is scarce in containers."""


class ReadAhead:
    """The observations of batches, in the order of the steps. At most AHEAD * workers + 1 batches exist at a time.

    Without workers a batch is read when it is asked for. The workers end with `close`, or with this process.
    """

    def __init__(
        self,
        observations: Mapping[str, StreamedRows],
        rows_of: Callable[[Step], Tensor],
        workers: int,
        limit_s: float = LimitsConfig.data_s,
    ) -> None:
        """`rows_of` returns the data set rows that a step needs, [batch, n_obs_steps]."""
        self._observations, self._rows_of, self._workers, self._limit_s = observations, rows_of, workers, limit_s
        self._pool: Pool | None = None
        self._reading: deque[tuple[Step, Future[Arrays]]] = deque()

    def read(self, step: Step) -> dict[str, Tensor]:
        """{key: [batch, n_obs_steps, *row]}, already read ahead if `step` follows the previous one.

        Raises:
            OSError: the data cannot be read, or a worker died or takes too long.
        """
        try:
            arrays = self._read_ahead(step) if self._workers else _arrays(self._observations, self._rows_of(step))
        except ChildProcessError:
            raise
        except (ValueError, OSError) as error:
            raise OSError(f"data cannot be read: {error}") from error
        return {key: torch.from_numpy(value) for key, value in arrays.items()}

    def close(self) -> None:
        """End the workers after they finish the batches they are reading."""
        self._reading.clear()
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def _read_ahead(self, step: Step) -> Arrays:
        """The batch of `step`; also starts reading as many of the next ones as may wait."""
        if not self._reading or self._reading[0][0] != step:
            self.close()
        if self._pool is None:
            prepared = _begin, (self._observations,)
            self._pool = Pool(self._workers, "reads data", self._limit_s, "limits.data_s", *prepared)
        number, rows = self._reading[-1][0] if self._reading else (step[0] - 1, step[1])
        while len(self._reading) <= AHEAD * self._workers:
            number += 1
            self._reading.append(((number, rows), self._pool.submit(_read, self._rows_of((number, rows)).numpy())))
        return self._pool.result(self._reading.popleft()[1])


def _arrays(observations: Mapping[str, StreamedRows], rows: Tensor) -> Arrays:
    return {key: value[rows].numpy() for key, value in observations.items()}


_observations: Mapping[str, StreamedRows] = {}  # in a worker process, set once by _begin


def _begin(observations: Mapping[str, StreamedRows]) -> None:
    """Initialise a worker."""
    global _observations
    _observations = observations


def _read(rows: np.ndarray) -> Arrays:
    return _arrays(_observations, torch.from_numpy(rows))
