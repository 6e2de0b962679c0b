"""Our own zarr layout as a `Recording`, so that it can be written in other formats."""

from __future__ import annotations

import os

import numpy as np

from diffpolicy.data.replay_buffer import ReplayBuffer
from diffpolicy.formats.recording import Recording

ABOUT = "source"  # in the attributes of the first episode: what holds for all episodes of a converted data set


def open_zarr(location: str | os.PathLike[str]) -> Recording:
    """Open a data set in zarr; raises as `ReplayBuffer.open`."""
    buffer = ReplayBuffer.open(location)
    attributes = buffer.episode_attributes
    about = next((each.pop(ABOUT) for each in attributes if isinstance(each.get(ABOUT), dict)), {"format": "zarr"})
    lengths = np.diff(buffer.episode_ends, prepend=0).tolist()
    return Recording(buffer.location, ZarrReader(buffer), dict(buffer.specs), lengths, attributes, about)


class ZarrReader:
    """Reads a replay buffer by episodes. It implements `Reader`."""

    def __init__(self, buffer: ReplayBuffer) -> None:
        self._buffer, self._starts = buffer, [0, *buffer.episode_ends.tolist()]

    def read(self, key: str, episode: int, steps: np.ndarray) -> np.ndarray:
        """The given steps of an array in one episode; see `Reader`."""
        first, last = int(steps[0]), int(steps[-1])
        start = self._starts[episode]
        if last - first + 1 == len(steps):
            return self._buffer.rows(key, start + first, start + last + 1)
        return self._buffer.take(key, start + steps)

    def close(self) -> None:
        """Close the file of a .zip."""
        self._buffer.close()
