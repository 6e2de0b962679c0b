"""Reading a LeRobot data set: rows from Parquet files, images from the same files or from videos."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from diffpolicy.formats.bounds import check_claim, existing
from diffpolicy.formats.lerobot_meta import INDICES, Metadata, read_metadata
from diffpolicy.formats.lerobot_names import Names, read_names
from diffpolicy.formats.parquet import Columns
from diffpolicy.formats.recording import Recording
from diffpolicy.formats.video import Video

OPEN_VIDEOS = 8
MOST_LATE = 0.1  # of the time between two steps, by which a timestamp may be wrong


def open_lerobot(location: str | os.PathLike[str]) -> Recording:
    """Open the folder of a LeRobot data set, of version 3.0 or 2.1.

    Arrays have the names of the features; in a data set that this library wrote, those that they had before. Images are
    uint8 [height, width, channels]. Where there are several tasks, `task_index` is an array, too.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the metadata are damaged, of another version, or do not fit together.
    """
    root = Path(os.path.abspath(location))
    metadata = read_metadata(root)
    names = read_names(root, metadata)
    files = {episode.data: existing(root, episode.data, "the data set") for episode in metadata.episodes}
    stored = sum(path.stat().st_size for path in files.values())
    check_claim(f"{root}: the data set", metadata.info.total_frames, stored)  # a byte per frame, at least
    for episode in metadata.episodes:
        for feature, (path, _) in episode.videos.items():
            existing(root, path, f"feature {feature!r}")
    readable, unreadable = _features(metadata)
    attributes = names.episodes or [{"tasks": each.tasks} for each in metadata.episodes]
    lengths = [each.length for each in metadata.episodes]
    reader = LeRobotReader(root, metadata, names)
    specs = {names.key(name): names.spec(name, row) for name, row in readable.items()}
    return Recording(
        str(root), reader, specs, lengths, attributes, names.about or _about(metadata, readable), unreadable
    )


def _features(metadata: Metadata) -> tuple[dict[str, tuple[tuple[int, ...], np.dtype]], dict[str, str]]:
    """The features that can be read, with shape and dtype of a row, and the others, with the reason."""
    readable, unreadable = {}, {}
    for name, feature in metadata.info.features.items():
        if name in INDICES and not (name == "task_index" and len(metadata.tasks) > 1):
            continue
        if feature.row is None:
            unreadable[name] = f"feature {name!r} is {feature.dtype}, expected numbers, images or video"
        else:
            readable[name] = feature.row
    return readable, unreadable


def _about(metadata: Metadata, readable: Collection[str]) -> dict[str, Any]:
    """What the data set says of itself, to be kept in ours."""
    info = metadata.info
    return {
        "format": "lerobot",
        "version": info.codebase_version,
        "fps": info.fps,
        "robot_type": info.robot_type,
        "tasks": metadata.tasks,
        "features": {name: asdict(info.features[name]) for name in readable},
        "statistics": {name: each for name, each in metadata.statistics.items() if name in readable},
    }


class LeRobotReader:
    """Reads the features of a data set by episodes. It implements `Reader`."""

    def __init__(self, root: Path, metadata: Metadata, names: Names) -> None:
        self._root, self._metadata, self._names = root, metadata, names
        self._columns, self._checked = Columns(), set[str]()
        self._videos: OrderedDict[tuple[str, str], Video] = OrderedDict()

    def __getstate__(self) -> Mapping[str, Any]:
        return {**self.__dict__, "_videos": OrderedDict()}

    def read(self, key: str, episode: int, steps: np.ndarray) -> np.ndarray:
        """The given steps of an array in one episode; see `Reader`."""
        name = self._names.feature(key)
        feature, place = self._metadata.info.features[name], self._metadata.episodes[episode]
        assert feature.row is not None
        shape, dtype = feature.row
        if feature.dtype == "video":
            path, begin_s = place.videos[name]
            return self._video(path, name, shape).frames(begin_s + steps / self._metadata.info.fps)
        path = self._root / place.data
        self._check(place.data)
        if feature.dtype == "image":
            return self._columns.images(path, name, place.row + steps, shape)
        values = self._columns.numbers(path, name, shape, dtype)[place.row + steps]
        return self._names.restored(name, values)

    def close(self) -> None:
        """Close the videos."""
        while self._videos:
            self._videos.popitem()[1].close()

    def _video(self, path: str, name: str, shape: tuple[int, ...]) -> Video:
        if (path, name) not in self._videos:
            while len(self._videos) >= OPEN_VIDEOS:
                self._videos.popitem(last=False)[1].close()
            file = existing(self._root, path, f"feature {name!r}")
            self._videos[path, name] = Video(file, shape, self._metadata.info.fps, f"{file}: feature {name!r}")
        self._videos.move_to_end((path, name))
        return self._videos[path, name]

    def _check(self, data: str) -> None:
        """Check once for each file that its rows are the steps of the episodes that the metadata name."""
        if data in self._checked:
            return
        path = self._root / data
        episodes = [(i, each) for i, each in enumerate(self._metadata.episodes) if each.data == data]
        lengths = [each.length for _, each in episodes]
        if (found := self._columns.n_rows(path)) != sum(lengths):
            raise ValueError(
                f"{path}: has {found} rows, but the metadata give its episodes {episodes[0][0]} to {episodes[-1][0]} "
                f"{sum(lengths)}; copy or download the data set again"
            )
        expected = {
            "episode_index": np.repeat([i for i, _ in episodes], lengths),
            "frame_index": np.concatenate([np.arange(length) for length in lengths]),
        }
        for name, numbers in expected.items():
            found = self._columns.numbers(path, name, (), np.dtype("int64"))
            if (wrong := np.flatnonzero(found != numbers)).size:
                row = int(wrong[0])
                raise ValueError(f"{path}: {name} is {found[row]} in row {row}, the metadata expect {numbers[row]}")
        times_s = self._columns.numbers(path, "timestamp", (), np.dtype("float32"))
        late = np.abs(times_s * self._metadata.info.fps - expected["frame_index"])
        if (late > MOST_LATE).any():
            row = int((late > MOST_LATE).argmax())
            raise ValueError(
                f"{path}: timestamp is {times_s[row]:g} s in row {row}, step {expected['frame_index'][row]} of its "
                f"episode; that is not {self._metadata.info.fps:g} steps per second (info.json)"
            )
        self._checked.add(data)
