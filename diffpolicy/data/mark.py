"""The mark on data sets that we wrote, and the checksum in it, which covers what the chunks' own checksums do not.

    {"version": 2, "arrays": [...], "n_episodes": n, "sha256": "..."}

The checksum covers the metadata of every array except for its number of rows, the first n episode ends and the
attributes of the first n episodes. It is written at the end of an append: a writer that is killed before leaves n or
n + 1 episodes.

Version 1 was {"version": 1, "keys": [...]}, without a checksum. The names have moved to `arrays`: a library of that
time, which would append without the checksum, takes a data set of version 2 for another writer's and only reads it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import numpy as np
import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from diffpolicy.system.plain import parsed
from diffpolicy.system.schema import Count, Range, read_settings

NAME = "diffpolicy"  # the attribute of the root group
VERSION = 2
ENDS = "meta/episode_ends"
Names = Annotated[list[str], Count(1, 10_000)]


@dataclass
class Mark:
    """The mark of a data set."""

    version: Annotated[int, Range(1, VERSION)]
    keys: Names | None = None
    arrays: Names | None = None
    n_episodes: Annotated[int, Range(least=0)] | None = None
    sha256: str | None = None

    @property
    def names(self) -> list[str]:
        """The names of the arrays."""
        return self.arrays if self.arrays is not None else self.keys or []


def read_mark(root: zarr.Group, location: str) -> Mark | None:
    """The mark on a root group; None on other people's data sets.

    Raises:
        ValueError: the mark is damaged, or of a later version.
    """
    found: Any = root.attrs.get(NAME)
    if NAME not in root.attrs:
        return None
    mark = read_settings(Mark, found, f"{location}: attribute {NAME!r}")
    expected = {1: ("keys",), 2: ("arrays", "n_episodes", "sha256")}[mark.version]
    if {key for key, value in asdict(mark).items() if value is not None} != {"version", *expected}:
        raise ValueError(
            f"{location}: attribute {NAME!r} of version {mark.version} has {', '.join(found)}, expected version, "
            f"{', '.join(expected)}; copy or download the data set again"
        )
    return mark


def write_mark(root: zarr.Group, keys: list[str], ends: np.ndarray, attributes: list[Any]) -> None:
    """Write the mark of a data set whose `ends` [n_episodes] and `attributes`, one per episode, are on disk."""
    sha256 = _checksum(root, keys, ends, attributes)
    root.update_attributes({NAME: {"version": VERSION, "arrays": keys, "n_episodes": len(ends), "sha256": sha256}})


def has_changed(root: zarr.Group) -> bool:
    """Whether the mark on disk is another one than when the group was opened."""
    return zarr.open_group(root.store, path=root.path, mode="r").attrs.get(NAME) != root.attrs.get(NAME)


def check_mark(root: zarr.Group, mark: Mark, ends: np.ndarray, attributes: list[Any], location: str) -> None:
    """Raise ValueError unless metadata, `ends` and `attributes` are those of which the mark has the checksum."""
    if mark.n_episodes is None:
        return
    if len(ends) not in (mark.n_episodes, mark.n_episodes + 1):
        raise ValueError(
            f"{location}: holds {len(ends)} episodes, expected {mark.n_episodes}; copy or download the data set again"
        )
    if _checksum(root, mark.names, ends[: mark.n_episodes], attributes[: mark.n_episodes]) != mark.sha256:
        raise ValueError(
            f"{location}: the metadata do not match their SHA-256; they were changed or damaged; "
            "copy or download the data set again"
        )


def _checksum(root: zarr.Group, keys: list[str], ends: np.ndarray, attributes: list[Any]) -> str:
    arrays = {name: _layout(root, name) for name in (*(f"data/{key}" for key in keys), ENDS)}
    content = {"arrays": arrays, "ends": ends.tolist(), "attributes": attributes}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _layout(root: zarr.Group, name: str) -> Any:
    """The metadata of an array as they are stored, without the number of rows and what a user may add."""
    path = f"{root.path}/{name}/zarr.json".lstrip("/")
    found = sync(root.store.get(path, default_buffer_prototype()))
    if found is None:
        raise ValueError(f"{root.store}: {path} is missing")
    content = dict(parsed(found.to_bytes(), path))
    content["shape"] = content["shape"][1:]
    return {key: value for key, value in content.items() if key != "attributes"}
