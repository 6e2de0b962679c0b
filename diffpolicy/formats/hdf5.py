"""HDF5 files that may come from anyone: only what lies in the file itself is read, and no more than it can hold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from diffpolicy.formats.bounds import check_claim, decoding

ERRORS = (OSError, RuntimeError, KeyError, ValueError)
FILTERS = {1: "gzip", 2: "shuffle", 3: "fletcher32", 6: "scaleoffset", 32000: "lzf"}  # built into h5py: no plug-ins
MOST_DEPTH = 8


def open_file(path: Path) -> h5py.File:
    """Open a file for reading.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or no HDF5 file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: is missing; expected an HDF5 file")
    with decoding(str(path), *ERRORS):
        return h5py.File(path, "r")


def member(group: h5py.Group, name: str, where: str) -> h5py.Group | h5py.Dataset:
    """What lies in a group under a name; links, which may lead to other files, are refused.

    Raises:
        ValueError: there is nothing, or a link, or it is damaged.
    """
    with decoding(f"{where}: {name}", *ERRORS):
        kind: Any = group.get(name, getclass=True, getlink=True)
    if kind is None:
        raise ValueError(f"{where}: holds no {name!r}, expected one; found {', '.join(names(group)[:10]) or 'nothing'}")
    if kind is not h5py.HardLink:
        raise ValueError(f"{where}: {name!r} is a {kind.__name__}, which is refused: it may lead to another file")
    with decoding(f"{where}: {name}", *ERRORS):
        found = group[name]
    if not isinstance(found, h5py.Group | h5py.Dataset):
        raise ValueError(f"{where}: {name!r} is a {type(found).__name__}, expected a group or an array")
    return found


def names(parent: h5py.Group) -> list[str]:
    """The names of what lies in a group; nothing is opened."""
    return [str(name) for name in parent]


def group(parent: h5py.Group, name: str, where: str) -> h5py.Group:
    """The group of a name; raises ValueError as `member`."""
    found = member(parent, name, where)
    if not isinstance(found, h5py.Group):
        raise ValueError(f"{where}: {name!r} is an array, expected a group")
    return found


def arrays(parent: h5py.Group, where: str, prefix: str = "", depth: int = MOST_DEPTH) -> dict[str, h5py.Dataset]:
    """All arrays below a group: group/name -> array; raises ValueError as `member`."""
    if not depth:
        raise ValueError(f"{where}: groups are nested more than {MOST_DEPTH} times")
    found: dict[str, h5py.Dataset] = {}
    for name in names(parent):
        each = member(parent, name, where)
        if isinstance(each, h5py.Group):
            found |= arrays(each, where, f"{prefix}{name}/", depth - 1)
        else:
            found[prefix + name] = each
    return found


def unsuitable(array: h5py.Dataset) -> str | None:
    """Why an array holds no plain numbers in its own file; None if it does."""
    if array.dtype.kind not in "buif":
        return f"dtype is {array.dtype}, expected numbers"
    if array.is_virtual or array.external:
        return "the numbers are in other files, which is refused"
    properties = array.id.get_create_plist()
    filters = [properties.get_filter(i)[0] for i in range(properties.get_nfilters())]
    if unknown := [number for number in filters if number not in FILTERS]:
        return f"it is stored with filters {unknown}, expected {', '.join(FILTERS.values())}"
    return "is a single number, expected one row per step" if array.ndim < 1 else None


def check_size(array: h5py.Dataset, where: str) -> None:
    """Raise ValueError if an array claims more memory than the file can stand for."""
    stored, item = int(array.id.get_storage_size()), array.dtype.itemsize
    check_claim(where, math.prod(array.shape) * item, stored)
    check_claim(f"{where}: a chunk", math.prod(array.chunks or (1,)) * item, stored)


def text(attributes: Mapping[str, Any], name: str) -> str | None:
    """An attribute that holds a text; None if there is none."""
    with decoding(f"attribute {name}", *ERRORS):
        found = attributes.get(name)
    return found if isinstance(found, str) else None


class Hdf5Reader:
    """Reads the arrays of a file by episodes. It implements `Reader`.

    Args:
        path: the file.
        episodes: for each episode, array -> path inside the file.
    """

    def __init__(self, path: Path, episodes: Sequence[Mapping[str, str]]) -> None:
        self._path, self._episodes = path, episodes
        self._file: h5py.File | None = None

    def __getstate__(self) -> Mapping[str, Any]:
        return {**self.__dict__, "_file": None}

    def read(self, key: str, episode: int, steps: np.ndarray) -> np.ndarray:
        """The given steps of an array in one episode; see `Reader`."""
        if self._file is None:
            self._file = open_file(self._path)
        name = self._episodes[episode][key]
        with decoding(f"{self._path}: {name}", *ERRORS):
            first, last = int(steps[0]), int(steps[-1])
            if last - first + 1 == len(steps):
                return self._file[name][first : last + 1]  # type: ignore[index]
            return self._file[name][steps]  # type: ignore[index]

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def check_episodes(
    episodes: Sequence[tuple[str, Mapping[str, h5py.Dataset], int]], extra: Mapping[str, int], where: str
) -> tuple[dict[str, tuple[tuple[int, ...], np.dtype]], dict[str, str]]:
    """Check that all episodes have the same arrays, of their lengths: (specs, the others and what is wrong).

    Args:
        episodes: name, arrays, number of steps.
        extra: how many rows an array has more than its episode has steps, if any.

    Raises:
        ValueError: an array is missing in an episode, or has another shape, type or length than expected.
    """
    specs: dict[str, tuple[tuple[int, ...], np.dtype]] = {}
    left_out: dict[str, str] = {}
    for name, found, length in episodes:
        for key, array in found.items():
            here = f"{where}: {name}/{key}"
            if reason := unsuitable(array):
                left_out[key] = f"{name}/{key}: {reason}"
                continue
            check_size(array, here)
            if len(array) != length + extra.get(key, 0):
                raise ValueError(f"{here}: has {len(array)} rows, expected {length + extra.get(key, 0)}")
            row = (tuple(array.shape[1:]), array.dtype)
            if specs.setdefault(key, row) != row:
                raise ValueError(f"{here}: rows are {row[1]} of shape {row[0]}, in other episodes {specs[key]}")
    for name, found, _ in episodes:
        if missing := set(specs) - set(found) - set(left_out):
            raise ValueError(f"{where}: {name} has no array {sorted(missing)[0]!r}, other episodes have it")
    return {key: row for key, row in specs.items() if key not in left_out}, left_out
