"""How arrays of ours are called in LeRobot, and the file meta/diffpolicy.json, which tells what they were before."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from diffpolicy.formats.lerobot_meta import INDICES, Metadata
from diffpolicy.system.plain import parsed, read_bounded
from diffpolicy.system.schema import Count, Range, read_settings

FILE = "meta/diffpolicy.json"
KNOWN = {
    "action": "action",
    "actions": "action",
    "reward": "next.reward",
    "rewards": "next.reward",
    "done": "next.done",
    "dones": "next.done",
}


@dataclass
class Was:
    """An array before it was written: its name, and the shape of a row, whose empty shape LeRobot does not know."""

    key: str
    row: Annotated[list[Annotated[int, Range(1, 2**31)]], Count(0, 32)]


@dataclass
class Names:
    """The content of the file; without it, arrays are called like the features."""

    version: Annotated[int, Range(1, 1)] = 1
    features: dict[str, Was] = field(default_factory=dict)
    episodes: list[dict[str, Any]] = field(default_factory=list)  # the attributes of each episode
    about: dict[str, Any] = field(default_factory=dict)  # what holds for all episodes

    def key(self, feature: str) -> str:
        """The array of a feature."""
        return self.features[feature].key if feature in self.features else feature

    def feature(self, key: str) -> str:
        """The feature of an array."""
        return next((name for name, was in self.features.items() if was.key == key), key)

    def spec(self, feature: str, row: tuple[tuple[int, ...], np.dtype]) -> tuple[tuple[int, ...], np.dtype]:
        """Shape of one row and dtype of the array of a feature that has `row`."""
        return (tuple(self.features[feature].row), row[1]) if feature in self.features else row

    def restored(self, feature: str, values: np.ndarray) -> np.ndarray:
        """The rows of a feature in the shape that they had before."""
        return values.reshape(len(values), *self.features[feature].row) if feature in self.features else values


def read_names(root: Path, metadata: Metadata) -> Names:
    """Read the file, if there is one; raises ValueError if it does not fit the data set."""
    path = root / FILE
    if not path.is_file():
        return Names()
    names = read_settings(Names, parsed(read_bounded(path), str(path)), str(path))
    keys = [names.key(name) for name in metadata.info.features]
    if len(set(keys)) < len(keys) or len(names.episodes) not in (0, len(metadata.episodes)):
        raise ValueError(f"{path}: does not fit the data set; remove it to read the features by their own names")
    for name, was in names.features.items():
        feature = metadata.info.features.get(name)
        row = feature.row if feature is not None else None
        if row is None or math.prod(row[0]) != math.prod(was.row):
            raise ValueError(f"{path}: feature {name!r} has not the shape {was.row}; remove the file to ignore it")
    return names


def write_names(root: Path, names: Names) -> None:
    """Write the file."""
    content = {
        "version": names.version,
        "features": {name: {"key": was.key, "row": was.row} for name, was in names.features.items()},
        "episodes": names.episodes,
        "about": names.about,
    }
    (root / FILE).write_text(json.dumps(content, indent=1), encoding="utf-8")


def feature_names(is_image: Mapping[str, bool]) -> dict[str, str]:
    """Array -> feature, by LeRobot's conventions; `is_image` says of each array whether it holds images.

    Raises:
        ValueError: two arrays would have the same name.
    """
    found = {key: _feature_name(key, image) for key, image in is_image.items()}
    if len(set(found.values())) < len(found):
        raise ValueError(f"two arrays would get the same name in LeRobot: {found}; leave one out with leave_out=[NAME]")
    return found


def _feature_name(key: str, is_image: bool) -> str:
    if key.startswith(("observation.", "action.", "next.")) or key in INDICES:
        return key
    plain = key.removeprefix("obs/").removeprefix("observations/").replace("/", ".")
    return KNOWN.get(plain, f"observation.images.{plain}" if is_image else f"observation.{plain}")
