"""What training asks of a data set, whatever its format; `ReplayBuffer` is one."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np


class DataSource(Protocol):
    """Episodes of equally long arrays, read lazily; a row of each is one step, whose state precedes its action.

    Worker processes get copies of it, so it must be picklable where observations are streamed.
    """

    location: str

    @property
    def n_episodes(self) -> int: ...

    @property
    def n_steps(self) -> int: ...

    @property
    def episode_ends(self) -> np.ndarray:
        """int64 [n_episodes], one past each episode's last row."""
        ...

    @property
    def keys(self) -> list[str]: ...

    @property
    def specs(self) -> Mapping[str, tuple[tuple[int, ...], Any]]:
        """Key -> (shape of one row, dtype)."""
        ...

    def __getitem__(self, key: str, /) -> np.ndarray:
        """All rows of one array [n_steps, ...]; ValueError on NaN, inf or damage."""
        ...

    def rows(self, key: str, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop) of one array, likewise."""
        ...

    def take(self, key: str, rows: np.ndarray) -> np.ndarray:
        """Some rows of one array, given in rising order, each once, likewise."""
        ...

    def close(self) -> None: ...
