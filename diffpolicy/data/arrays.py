"""Finding and checking the arrays of an opened data set."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import zarr
from numcodecs.errors import UnknownCodecError
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from diffpolicy.data import checks, memory_bounds, store
from diffpolicy.data.image_codecs import registered
from diffpolicy.system.plain import shown_text
from diffpolicy.system.schema import read


class StepArrays(Mapping[str, zarr.Array]):
    """The arrays of a data set that have one row per step. Each is looked at when it is first asked for.

    A data set of ours, whose arrays are known, is checked as a whole at once. Files of others may hold anything
    besides: arrays per episode, text, images whose codec is not installed. None of it matters until it is asked for.

    Attributes:
        names: all arrays in data/, readable or not; an array in a group is called group/array.

    Raises:
        ValueError: an array of ours is missing or unsuitable.
    """

    def __init__(self, data: zarr.Group, ends: np.ndarray, location: str, ours: list[str] | None) -> None:
        self._data, self._location = data, location
        self._ends = ends
        self._is_ours = ours is not None
        self.names = ours if ours is not None else sorted(_array_names(data.store, data.path))
        self._found: dict[str, zarr.Array] = {}
        if ours is not None:
            self._found = {key: find_array(data, key, location) for key in ours}
            self._check_lengths()
            for array in self._found.values():
                checks.check_chunks(location, array, self._n_steps)

    def __getitem__(self, key: str) -> zarr.Array:
        """The array `key`.

        Raises:
            KeyError: there is no such array.
            ValueError: it cannot be read, is too short, or does not belong to those that were asked for before.
        """
        if key not in self._found:
            if key not in self.names and key not in self._data:
                raise KeyError(f"{self._location}: no array {key!r}; it has {self.names}")
            self._found[key] = find_array(self._data, key, self._location)
            try:
                self._check_lengths()
            except ValueError:
                del self._found[key]
                raise
        return self._found[key]

    def __iter__(self) -> Iterator[str]:
        """The names of the arrays that can be read."""
        left_out = self.left_out()
        return iter([name for name in self.names if name not in left_out])

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def left_out(self) -> dict[str, str]:
        """The arrays that cannot be read as one row per step: name -> reason. Looks at every array."""
        reasons = {}
        for name in self.names:
            try:
                _ = self[name]
            except ValueError as error:
                reasons[name] = str(error)
        return reasons

    @property
    def _n_steps(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def _check_lengths(self) -> None:
        """Check that no rows are missing, and warn about rows past the last episode end."""
        lengths = {key: array.shape[0] for key, array in self._found.items()}
        checks.check_lengths(self._location, lengths, self._n_steps, self._is_ours)
        extra = max(lengths.values(), default=0) - self._n_steps
        if extra and (self._is_ours or len(lengths) == 1):
            warnings.warn(
                f"{self._location}: ignoring {extra} rows past the last episode end ({self._n_steps}), left by an "
                "append that did not finish",
                stacklevel=5,
            )


class SpecsOf(Mapping[str, tuple[tuple[int, ...], np.dtype]]):
    """Key -> (shape of one row, dtype), of the array that is asked for."""

    def __init__(self, arrays: Mapping[str, zarr.Array]) -> None:
        self._arrays = arrays

    def __getitem__(self, key: str) -> tuple[tuple[int, ...], np.dtype]:
        array = self._arrays[key]
        return tuple(array.shape[1:]), np.dtype(array.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)


def find_group(root: zarr.Group, name: str, location: str) -> zarr.Group:
    """The group `name` of a data set; `location` begins the error message.

    Raises:
        ValueError: there is no such group.
    """
    with store.reading(f"{location}: group {name}"):
        group = root.get(name)
    if not isinstance(group, zarr.Group):
        raise ValueError(f"{location}: no group {name!r}, expected data/<key> arrays and meta/episode_ends")
    return group


def find_array(group: zarr.Group, key: str, location: str) -> zarr.Array:
    """The array `key` [n_steps, ...] of a group.

    Raises:
        ValueError: there is no such array, it is a scalar, or reading it would need pickle.
    """
    path = shown_text(f"{group.path}/{key}")  # the key may come from a damaged file
    name = f"{location}: array {path}"
    with store.reading(name):
        array = _member(group, key)
    if not isinstance(array, zarr.Array):
        raise ValueError(f"{location}: no array {path}, expected data/<key> arrays and meta/episode_ends")
    checks.check_codecs(name, array)
    if array.ndim < 1:
        raise ValueError(f"{name}: is a single number, expected one row per step")
    memory_bounds.bound(name, array)
    return array


def _member(group: zarr.Group, key: str) -> object:
    try:
        return group.get(key)
    except UnknownCodecError:
        if not registered():
            raise
        return group.get(key)


def read_ends(array: zarr.Array, location: str, ours: bool) -> np.ndarray:
    """Read the episode ends, int64 [n_episodes], without the placeholder of an append that did not finish.

    Args:
        ours: whether `ReplayBuffer` wrote the data set; only its appends leave a placeholder.

    Raises:
        ValueError: the ends are damaged, or not positive and strictly increasing integers; in a data set of ours, a
            chunk of them is missing.
    """
    name = f"{location}: meta/episode_ends"
    with store.reading(name):
        ends = np.asarray(array[:])
    if ours and ends.ndim == 1 and len(ends) and ends[-1] == 0:
        # Only the last end can be a placeholder: an append adds one end at a time.
        ends = ends[:-1]
    ends = checks.check_ends(name, ends)
    if ours:
        checks.check_chunks(location, array, len(ends))
    return ends


def read_attributes(group: zarr.Group, n_episodes: int, location: str) -> list[dict[str, Any]]:
    """The attributes of every episode, empty where none were given; raises ValueError if they are no mappings."""
    found = read(list[dict[str, Any]], group.attrs.get("episodes", []), f"{location}: attribute 'episodes' of meta")
    return found[:n_episodes] + [{} for _ in range(n_episodes - len(found))]


def copy_rows(read_rows: Callable[[int, int], np.ndarray], rows: np.ndarray, target: zarr.Array) -> None:
    """Fill `target` with `rows`, which `read_rows` reads by ranges [start, stop)."""
    target.resize((len(rows), *target.shape[1:]))
    block = target.chunks[0] * max(1, 2**26 // store.CHUNK_BYTES)
    for start in range(0, len(rows), block):
        wanted = rows[start : start + block]
        runs = np.split(wanted, np.flatnonzero(np.diff(wanted) != 1) + 1)
        target[start : start + block] = np.concatenate([read_rows(int(run[0]), int(run[-1]) + 1) for run in runs])


def _array_names(source: Any, path: str) -> list[str]:
    """The names of the arrays below a group, by the presence of their metadata, which may be unreadable.

    A store that cannot list its content, such as some web servers, has none.
    """

    async def names_in(folder: str, prefix: str) -> list[str]:
        found: list[str] = []
        async for name in source.list_dir(folder):
            child = f"{folder}/{name}"
            if await is_group(child):
                found += await names_in(child, f"{prefix}{name}/")
            elif await source.exists(f"{child}/zarr.json") or await source.exists(f"{child}/.zarray"):
                found.append(prefix + name)
        return found

    async def is_group(folder: str) -> bool:
        if await source.exists(f"{folder}/.zgroup"):
            return True
        try:
            content = await source.get(f"{folder}/zarr.json", default_buffer_prototype())
            metadata = json.loads(content.to_bytes()) if content is not None else {}
        except ValueError:  # damaged or too large: an array, until it is asked for
            return False
        return isinstance(metadata, dict) and metadata.get("node_type") == "group"

    return sync(names_in(path, ""))
