"""Finding and checking the arrays of an opened data set."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import zarr

from diffpolicy.data import checks, limits, store
from diffpolicy.system.schema import read


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


def array_names(group: zarr.Group, location: str) -> list[str]:
    """The names of all arrays in a group; raises ValueError if one cannot be read."""
    with store.reading(f"{location}: an array in {group.path}"):
        return sorted(group.array_keys())


def find_array(group: zarr.Group, key: str, location: str) -> zarr.Array:
    """The array `key` [n_steps, ...] of a group.

    Raises:
        ValueError: there is no such array, it is a scalar, or reading it would need pickle.
    """
    name = f"{location}: array {group.path}/{key}"
    with store.reading(name):
        array = group.get(key)
    if not isinstance(array, zarr.Array):
        raise ValueError(f"{location}: no array {group.path}/{key}, expected data/<key> arrays and meta/episode_ends")
    checks.check_codecs(name, array)
    if array.ndim < 1:
        raise ValueError(f"{name}: is a single number, expected one row per step")
    limits.limit(name, array)
    return array


def read_ends(array: zarr.Array, location: str, ours: bool, most: int) -> np.ndarray:
    """Read the episode ends, int64 [n_episodes], without the placeholder of an append that did not finish.

    Args:
        most: one more than there are rows; an episode has a row at least.
        ours: whether `ReplayBuffer` wrote the data set; only its appends leave a placeholder.

    Raises:
        ValueError: the ends are damaged, or not positive and strictly increasing integers.
    """
    name = f"{location}: meta/episode_ends"
    if array.ndim == 1 and array.shape[0] > most:
        raise ValueError(f"{name}: has {array.shape[0]} ends, but the arrays have {most - 1} rows")
    with store.reading(name):
        ends = np.asarray(array[:])
    if ours and ends.ndim == 1 and len(ends) and ends[-1] == 0:
        # Only the last end can be a placeholder: an append adds one end at a time.
        ends = ends[:-1]
    return checks.check_ends(name, ends)


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


def check_arrays(
    arrays: Mapping[str, zarr.Array], ends_array: zarr.Array, ends: np.ndarray, location: str, ours: bool
) -> None:
    """Check that no rows or chunks are missing, and warn about rows past the last episode end.

    Raises:
        ValueError: rows are missing or, in a data set of `ours`, chunks.
    """
    n_steps = int(ends[-1]) if len(ends) else 0
    lengths = {key: array.shape[0] for key, array in arrays.items()}
    checks.check_lengths(location, lengths, n_steps, ours)
    if ours:
        checks.check_chunks(location, ends_array, len(ends))
        for array in arrays.values():
            checks.check_chunks(location, array, n_steps)
    extra = max(lengths.values(), default=0) - n_steps
    if extra:
        warnings.warn(
            f"{location}: ignoring {extra} rows past the last episode end ({n_steps}), left by an append that did not "
            "finish",
            stacklevel=3,
        )
