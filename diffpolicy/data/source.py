"""The interface that training needs from a data set, whatever its format. `ReplayBuffer` implements it."""

from collections.abc import Mapping
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
