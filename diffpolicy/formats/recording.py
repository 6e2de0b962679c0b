"""A data set of another format as a `DataSource`: rows of arrays, although it is stored by episodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from diffpolicy.data.checks import Specs, check_finite


class Reader(Protocol):
    """What a format has to offer; it must be picklable, so that worker processes get copies."""

    def read(self, key: str, episode: int, steps: np.ndarray) -> np.ndarray:
        """The given steps of an array in one episode, in increasing order: [len(steps), *row].

        Raises ValueError or FileNotFoundError on damaged or missing files; the message names file and feature.
        """
        ...

    def close(self) -> None:
        """Release open files."""
        ...


class Recording:
    """The episodes of a data set, read lazily. It implements `DataSource`.

    Args:
        location: where it is, for messages.
        reader: reads its arrays.
        specs: array name -> (shape of one row, dtype).
        lengths: the number of steps of each episode.
        episode_attributes: one JSON mapping per episode.
        about: what holds for all episodes, as JSON: format, version, fps, tasks, statistics, features.
        unreadable: the arrays that cannot be read, such as texts, and why.
    """

    def __init__(
        self,
        location: str,
        reader: Reader,
        specs: Specs,
        lengths: Sequence[int],
        episode_attributes: Sequence[Mapping[str, Any]],
        about: Mapping[str, Any],
        unreadable: Mapping[str, str] | None = None,
    ) -> None:
        self.location, self._reader = location, reader
        self.specs = dict(specs)
        self._ends = np.cumsum(np.array(lengths, dtype=np.int64))
        self.episode_attributes = [dict(each) for each in episode_attributes]
        self.about, self.unreadable = dict(about), dict(unreadable or {})

    @property
    def n_episodes(self) -> int:
        """Number of episodes."""
        return len(self._ends)

    @property
    def n_steps(self) -> int:
        """Number of steps in all episodes together."""
        return int(self._ends[-1]) if len(self._ends) else 0

    @property
    def episode_ends(self) -> np.ndarray:
        """int64 [n_episodes], one past each episode's last row."""
        return self._ends.copy()

    @property
    def keys(self) -> list[str]:
        """Names of the arrays."""
        return list(self.specs)

    def __getitem__(self, key: str) -> np.ndarray:
        """All rows of one array [n_steps, ...]; raises as `rows`."""
        return self.rows(key, 0, self.n_steps)

    def rows(self, key: str, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop) of one array; raises as `take`."""
        return self.take(key, np.arange(start, stop))

    def take(self, key: str, rows: np.ndarray) -> np.ndarray:
        """The given rows of one array, in increasing order without repetition.

        Raises:
            KeyError: there is no such array.
            FileNotFoundError: a file is missing.
            ValueError: a file is damaged, an array has another shape than the metadata say, or there are NaN or inf.
        """
        if key not in self.specs:
            reason = self.unreadable.get(key, f"no array {key!r}; it has {self.keys}")
            raise KeyError(f"{self.location}: {reason}")
        shape, dtype = self.specs[key]
        episodes = np.searchsorted(self._ends, rows, side="right")
        found = np.empty((len(rows), *shape), dtype)
        for episode in np.unique(episodes):
            first = int(self._ends[episode - 1]) if episode else 0
            chosen = slice(*np.searchsorted(episodes, [episode, episode + 1]))
            found[chosen] = self._reader.read(key, int(episode), rows[chosen] - first)
        check_finite(self.location, key, found, rows, self._ends)
        return found

    def close(self) -> None:
        """Release open files."""
        self._reader.close()
