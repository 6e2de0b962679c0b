"""Demonstrations on disk in the usual zarr layout: `data/<key>` [n_steps, ...] and `meta/episode_ends` [n_episodes]."""

from __future__ import annotations

import functools
import os
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from diffpolicy.data import arrays as stored
from diffpolicy.data import checks, mark, replacing, store
from diffpolicy.data.archive import write_zip
from diffpolicy.data.groups import forget_consolidated
from diffpolicy.system.files import staging

TRIES = 20  # a data set that is appended to more often than this while it is opened is an error


class ReplayBuffer:
    """Episodes of arrays of equal length, read lazily and written by one writer at a time.

    A row of `data/<key>` is one step. Episode i is the rows [episode_ends[i - 1], episode_ends[i]). An append writes
    the rows first and the episode's end last, so a process that is killed at any point leaves only whole episodes.
    """

    def __init__(self, root: zarr.Group, location: str, mode: str):
        """Use `create` or `open` instead."""
        self.location, self.mode, self._root = location, mode, root
        found = mark.read_mark(root, location)
        self._ours = found is not None
        data, meta = (stored.find_group(root, name, location) for name in ("data", "meta"))
        self._ends_array = stored.find_array(meta, "episode_ends", location)
        self._ends = stored.read_ends(self._ends_array, location, self._ours)
        if mode == "a" and not self._ours:
            raise ValueError(f"{location}: not written by ReplayBuffer; buffer.copy(path) makes one to append to")
        self._arrays = stored.StepArrays(data, self._ends, location, found.names if found else None)
        if found:
            mark.check_mark(root, found, self._ends, self.episode_attributes, location)
            if mode == "a" and found.n_episodes != self.n_episodes:  # a writer was killed before it did this
                self._write_mark()

    @classmethod
    def create(cls, path: str | os.PathLike[str], specs: checks.Specs) -> ReplayBuffer:
        """Create an empty data set in a new directory at `path` and open it for appending.

        Args:
            specs: array name -> (shape of one row, dtype), e.g. {"action": ((2,), "float32")}.

        Raises:
            FileExistsError: `path` already exists.
            ValueError: the specs are invalid.
        """
        checks.check_specs(specs)
        target = Path(path)
        replacing.finish_swap(target)
        if target.exists():
            raise FileExistsError(f'{target}: exists already; open it with mode="a" to append, or remove it')
        with staging(target) as temporary:
            store.create_root(temporary, specs)
        return cls.open(target, mode="a")

    @classmethod
    def open(cls, location: str | os.PathLike[str], mode: str = "r") -> ReplayBuffer:
        """Open a directory, .zip or fsspec URL to read ("r"), or a directory that `create` made to append ("a").

        In files of others, an array is checked once it is asked for.

        Raises:
            FileNotFoundError: there is nothing at `location`.
            ValueError: the data set is damaged or unsuitable; the message names the array.
        """
        # Absolute, because chunks are read later, when the working directory may have changed.
        location = str(location) if "://" in str(location) else os.path.abspath(location)
        for _ in range(TRIES):
            root = store.open_root(location, mode)
            try:
                return cls(root, location, mode)
            except BaseException as error:
                is_changed = mode == "r" and isinstance(error, ValueError) and mark.has_changed(root)
                root.store.close()
                if not is_changed:
                    raise
        raise ValueError(f"{location}: was changed {TRIES} times while it was opened; wait for its writer")

    @property
    def n_episodes(self) -> int:
        """Number of complete episodes."""
        return len(self._ends)

    @property
    def n_steps(self) -> int:
        """Rows up to the last episode end."""
        return int(self._ends[-1]) if len(self._ends) else 0

    @property
    def episode_ends(self) -> np.ndarray:
        """int64 [n_episodes], one past each episode's last row."""
        return self._ends.copy()

    @property
    def keys(self) -> list[str]:
        """Names of the arrays that have one row per step and can be read; one in a group is called group/array."""
        return list(self._arrays)

    @property
    def specs(self) -> checks.Specs:
        """Key -> (shape of one row, dtype), as `create` takes it; asking for one key looks at one array."""
        return stored.SpecsOf(self._arrays)

    @property
    def episode_attributes(self) -> list[dict[str, Any]]:
        """One JSON mapping per episode, empty where none was given."""
        meta = stored.find_group(self._root, "meta", self.location)
        return stored.read_attributes(meta, self.n_episodes, self.location)

    def __getitem__(self, key: str) -> np.ndarray:
        """All rows of one array [n_steps, ...].

        Raises:
            KeyError: there is no such array.
            ValueError: it holds NaN or inf, or a chunk is damaged.
        """
        return self.rows(key, 0, self.n_steps)

    def rows(self, key: str, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop) of one array; raises as `buffer[key]` does."""
        array = self._arrays[key]
        with store.reading(f"{self.location}: array {key!r}"):
            values = np.asarray(array[start:stop])
        checks.check_finite(self.location, key, values, range(start, stop), self._ends)
        return values

    def take(self, key: str, rows: np.ndarray) -> np.ndarray:
        """The given rows of one array, in increasing order without repetition; raises as `buffer[key]` does."""
        array = self._arrays[key]
        with store.reading(f"{self.location}: array {key!r}"):
            values = np.asarray(array.oindex[rows])
        checks.check_finite(self.location, key, values, rows, self._ends)
        return values

    def episode(self, index: int) -> dict[str, np.ndarray]:
        """All arrays of one episode, each [length, ...]; raises IndexError if there is no such episode."""
        if not 0 <= index < self.n_episodes:
            raise IndexError(f"{self.location}: episode {index}, expected 0 to {self.n_episodes - 1}")
        start = int(self._ends[index - 1]) if index else 0
        return {key: self.rows(key, start, int(self._ends[index])) for key in self.keys}

    def append_episode(self, arrays: Mapping[str, Any], attributes: Mapping[str, Any] | None = None) -> None:
        """Append one episode: an array [length, ...] for every key and, optionally, a small JSON mapping about it.

        Raises:
            ValueError: keys are missing or unknown, shapes or types are wrong, or there are NaN or inf. Nothing has
                been written then.
        """
        self._require_append()
        values = checks.check_episode(arrays, self.specs, self.n_episodes)
        everyone = [*self.episode_attributes, checks.check_attributes(attributes, self.n_episodes)]
        start, length = self.n_steps, len(next(iter(values.values())))
        forget_consolidated(Path(self.location))
        for key, array in self._arrays.items():
            array.resize((start + length, *array.shape[1:]))
            store.writable(array)[start:] = values[key]
        if any(everyone) or "episodes" in self._root["meta"].attrs:
            self._root["meta"].update_attributes({"episodes": everyone})
        # The new element reads as 0 until the write below: the placeholder that read_ends drops.
        self._ends_array.resize((self.n_episodes + 1,))
        store.writable(self._ends_array)[self.n_episodes] = start + length
        self._ends = np.append(self._ends, start + length)
        self._write_mark()

    def drop_episodes(self, indices: Iterable[int]) -> None:
        """Remove episodes: write the others to a sibling directory, which then replaces this one."""
        self._require_append()
        kept = np.setdiff1d(np.arange(self.n_episodes), self._checked(indices))
        path = Path(self.location)
        replacing.discard_leftovers(path)
        self.copy(replacing.next_of(path), episodes=kept.tolist())
        replacing.swap(path)
        self.__init__(store.open_root(path, "a"), self.location, "a")

    def copy(
        self,
        path: str | os.PathLike[str],
        keys: Iterable[str] | None = None,
        episodes: Iterable[int] | None = None,
    ) -> None:
        """Write the given keys and episodes (default: all) to a new directory, in zarr format 3, atomically.

        Raises FileExistsError if `path` exists, KeyError or IndexError for an unknown key or episode.
        """
        target = Path(path)
        if target.exists():
            raise FileExistsError(f"{target}: exists already; remove it or choose another path")
        kept = self._checked(episodes if episodes is not None else range(self.n_episodes))
        if keys is None and (left_out := self._arrays.left_out()):
            reasons = "; ".join(left_out.values())
            warnings.warn(f"{self.location}: the copy leaves out {', '.join(left_out)} ({reasons})", stacklevel=2)
        specs = {key: self.specs[key] for key in (self.keys if keys is None else keys)}
        starts = np.concatenate([[0], self._ends])[kept]
        rows = np.concatenate([np.arange(0), *map(np.arange, starts, self._ends[kept])])
        with staging(target) as temporary:
            root = store.create_root(temporary, specs)
            for key in specs:
                stored.copy_rows(functools.partial(self.rows, key), rows, store.writable(root[f"data/{key}"]))  # type: ignore
            attributes = [self.episode_attributes[i] for i in kept]
            if any(attributes):
                root["meta"].update_attributes({"episodes": attributes})
            ends = store.writable(root["meta/episode_ends"])  # type: ignore[arg-type]
            ends.resize((len(kept),))
            ends[:] = kept_ends = np.cumsum(self._ends[kept] - starts)
            mark.write_mark(root, list(specs), kept_ends, attributes)

    def pack(self, zip_path: str | os.PathLike[str]) -> None:
        """Write everything to one read-only .zip; an existing file is replaced only once the new one is complete.

        Raises ValueError if the name does not end in .zip.
        """
        target = Path(zip_path)
        if target.suffix != ".zip":
            raise ValueError(f"{target}: expected a name that ends in .zip (usually .zarr.zip)")
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
            self.copy(Path(folder) / "buffer")
            write_zip(Path(folder) / "buffer", target)

    def close(self) -> None:
        """Close the file of a .zip; a directory has no open files."""
        self._root.store.close()

    def _write_mark(self) -> None:
        mark.write_mark(self._root, self.keys, self._ends, self.episode_attributes)

    def _checked(self, episodes: Iterable[int]) -> np.ndarray:
        """The episode indices, sorted and without repetition; raises IndexError if one does not exist."""
        indices = np.unique(np.array([*episodes], dtype=np.int64))
        unknown = indices[(indices < 0) | (indices >= self.n_episodes)]
        if len(unknown):
            raise IndexError(f"{self.location}: episodes {unknown.tolist()}, expected 0 to {self.n_episodes - 1}")
        return indices

    def _require_append(self) -> None:
        if self.mode != "a":
            raise ValueError(f'{self.location}: open for reading; open it with mode="a" to change it')
