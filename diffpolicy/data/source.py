"""The interface that training needs from a data set, whatever its format. `ReplayBuffer` implements it.

Two sources are made of others: the first episodes of one, and one with arrays that another holds.
"""

from collections import ChainMap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np


class DataSource(Protocol):
    """Episodes of arrays of equal length, read lazily. A row is one step, whose state precedes its action.

    Streaming observations needs a picklable source, because worker processes get copies of it.
    """

    location: str

    @property
    def n_episodes(self) -> int:
        """Number of episodes."""
        ...

    @property
    def n_steps(self) -> int:
        """Number of steps in all episodes together."""
        ...

    @property
    def episode_ends(self) -> np.ndarray:
        """int64 [n_episodes], one past each episode's last row."""
        ...

    @property
    def keys(self) -> list[str]:
        """Names of the arrays."""
        ...

    @property
    def specs(self) -> Mapping[str, tuple[tuple[int, ...], Any]]:
        """Key -> (shape of one row, dtype)."""
        ...

    def __getitem__(self, key: str, /) -> np.ndarray:
        """All rows of one array [n_steps, ...]; raises ValueError on NaN, inf or damaged data."""
        ...

    def rows(self, key: str, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop) of one array; raises as `source[key]` does."""
        ...

    def take(self, key: str, rows: np.ndarray) -> np.ndarray:
        """The given rows of one array, in increasing order without repetition; raises as `source[key]` does."""
        ...

    def close(self) -> None:
        """Release open files."""
        ...


class FirstEpisodes:
    """The first episodes of a data set; a `DataSource`."""

    def __init__(self, source: DataSource, n_episodes: int) -> None:
        self._source, self.n_episodes = source, n_episodes
        self.location = source.location
        self.episode_ends = source.episode_ends[:n_episodes]
        self.n_steps = int(self.episode_ends[-1])

    @property
    def keys(self) -> list[str]:
        return self._source.keys

    @property
    def specs(self) -> Mapping[str, tuple[tuple[int, ...], Any]]:
        return self._source.specs

    def __getitem__(self, key: str, /) -> np.ndarray:
        return self._source.rows(key, 0, self.n_steps)

    def rows(self, key: str, start: int, stop: int) -> np.ndarray:
        return self._source.rows(key, start, stop)

    def take(self, key: str, rows: np.ndarray) -> np.ndarray:
        return self._source.take(key, rows)

    def close(self) -> None:
        self._source.close()


class WithArrays:
    """A data set with further arrays, which another one of at least as many rows holds that was made from it."""

    def __init__(self, source: DataSource, further: DataSource) -> None:
        self._source, self._further = source, further
        self.location = source.location
        self.n_episodes, self.n_steps, self.episode_ends = source.n_episodes, source.n_steps, source.episode_ends

    @property
    def keys(self) -> list[str]:
        return [*self._source.keys, *self._further.keys]

    @property
    def specs(self) -> Mapping[str, tuple[tuple[int, ...], Any]]:
        return ChainMap(dict(self._further.specs), self._source.specs)  # type: ignore[arg-type]

    def __getitem__(self, key: str, /) -> np.ndarray:
        return self.rows(key, 0, self.n_steps)

    def rows(self, key: str, start: int, stop: int) -> np.ndarray:
        with self._told(key):
            return self._holder(key).rows(key, start, stop)

    def take(self, key: str, rows: np.ndarray) -> np.ndarray:
        with self._told(key):
            return self._holder(key).take(key, rows)

    def close(self) -> None:
        self._source.close()
        self._further.close()

    @contextmanager
    def _told(self, key: str) -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            if key not in self._further.keys:
                raise
            raise ValueError(f"{error}; or, to have it made again, remove {self._further.location}") from error

    def _holder(self, key: str) -> DataSource:
        return self._further if key in self._further.keys else self._source
