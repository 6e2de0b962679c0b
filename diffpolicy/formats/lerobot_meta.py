"""The metadata of a LeRobot data set, of version 3.0 or 2.1: features, episodes, and where rows and frames lie."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from diffpolicy.formats.bounds import filled
from diffpolicy.formats.parquet import read_rows
from diffpolicy.formats.statistics import aggregated
from diffpolicy.system.plain import parsed, read_bounded, shown
from diffpolicy.system.schema import Count, Range, read, read_settings

VERSIONS = ("v3.0", "v2.1")
INFO, STATISTICS = "meta/info.json", "meta/stats.json"
INDICES = ("timestamp", "frame_index", "episode_index", "index", "task_index")  # columns of every data set
MOST_ROW_BYTES = 2**28  # of one step of a feature
_NUMBER = re.compile(r"(u?int(8|16|32|64)|float(16|32|64)|bool)")
Size = Annotated[int, Range(1, 2**20)]


@dataclass
class Feature:
    """One feature as info.json describes it; `info` says how a video was encoded."""

    dtype: str
    shape: Annotated[list[Size], Count(0, 5)]
    names: Any = None
    info: Any = None

    @property
    def is_image(self) -> bool:
        """Whether it is stored as images or as a video."""
        return self.dtype in ("image", "video")

    @property
    def row(self) -> tuple[tuple[int, ...], np.dtype] | None:
        """Shape of one row and dtype in memory, images as [height, width, channels]; None if it holds no numbers."""
        if self.is_image:
            names = self.names if isinstance(self.names, list) else []
            is_first = names[:1] in (["channel"], ["channels"]) or (not names and self.shape[0] in (1, 3))
            height, width, channels = [*self.shape[1:], self.shape[0]] if is_first else self.shape
            return (height, width, channels), np.dtype("uint8")
        return (tuple(self.shape), np.dtype(self.dtype)) if _NUMBER.fullmatch(self.dtype) else None


@dataclass
class Info:
    """The part of info.json that is needed to read a data set."""

    codebase_version: str
    fps: Annotated[float, Range(above=0.0, most=1e5)]
    features: Annotated[dict[str, Feature], Count(1, 10_000)]
    total_episodes: Annotated[int, Range(0, 10**8)]
    total_frames: Annotated[int, Range(0, 10**12)]
    data_path: str
    chunks_size: Annotated[int, Range(1, 10**9)] = 1000
    video_path: str | None = None
    robot_type: str | None = None


@dataclass
class Episode:
    """Where an episode lies: its rows begin at `row` of a Parquet file, its frames at a time of each video."""

    length: int
    tasks: list[str]
    data: str
    row: int = 0
    videos: dict[str, tuple[str, float]] = field(default_factory=dict)  # feature -> path, seconds


@dataclass
class Metadata:
    """Everything that the folder meta/ says; `statistics` as in meta/stats.json."""

    info: Info
    episodes: list[Episode]
    tasks: list[str]
    statistics: Mapping[str, Any]


def read_metadata(root: Path) -> Metadata:
    """Read and check meta/.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, of another version, or does not agree with the others; the message names it.
    """
    info = read_info(root)
    v3 = info.codebase_version == "v3.0"
    rows = _episodes_v3(root) if v3 else _lines(root / "meta/episodes.jsonl")
    where = f"{root}: meta/episodes" + ("" if v3 else ".jsonl")
    rows.sort(key=lambda row: _whole(row, "episode_index", where))
    if [row["episode_index"] for row in rows] != list(range(info.total_episodes)):
        raise ValueError(f"{where}: describes {len(rows)} episodes, expected 0 to {info.total_episodes - 1} ({INFO})")
    episodes = [_episode(row, info, f"{where}, episode {index}") for index, row in enumerate(rows)]
    if (found := sum(episode.length for episode in episodes)) != info.total_frames:
        raise ValueError(f"{where}: the episodes have {found} frames together, expected {info.total_frames} ({INFO})")
    begun: dict[str, int] = {}
    for episode in episodes:
        episode.row = begun.get(episode.data, 0)
        begun[episode.data] = episode.row + episode.length
    return Metadata(info, episodes, _tasks(root, v3), _statistics(root))


def read_info(root: Path) -> Info:
    """Read meta/info.json; raises as `read_metadata`."""
    where = f"{root / INFO}"
    content = parsed(read_bounded(root / INFO), where)
    if not isinstance(content, dict):
        raise ValueError(f"{where} is {shown(content)}, expected a mapping")
    version = content.get("codebase_version")
    if version not in VERSIONS:
        raise ValueError(
            f"{where}: a data set of version {shown(version)}, expected {' or '.join(VERSIONS)}; LeRobot converts "
            "older ones: python -m lerobot.datasets.v30.convert_dataset_v21_to_v30"
        )
    known = {key: content[key] for key in Info.__dataclass_fields__ if key in content}
    features = known.get("features")
    if isinstance(features, dict):  # later versions describe more
        kept = Feature.__dataclass_fields__
        known["features"] = {
            name: {key: value for key, value in each.items() if key in kept} if isinstance(each, dict) else each
            for name, each in features.items()
        }
    info = read_settings(Info, known, where)
    for name, feature in info.features.items():
        if feature.is_image and len(feature.shape) != 3:
            raise ValueError(
                f"{where}: feature {name!r} is a {feature.dtype} of shape {feature.shape}, expected 3 sizes"
            )
        shape, dtype = feature.row or ((), np.dtype("bool"))
        if (size := math.prod(shape) * dtype.itemsize) > MOST_ROW_BYTES:
            raise ValueError(f"{where}: feature {name!r} has rows of {size} bytes, expected at most {MOST_ROW_BYTES}")
        if feature.dtype == "video" and not info.video_path:
            raise ValueError(f"{where}: feature {name!r} is a video, but there is no video_path")
    return info


def _episodes_v3(root: Path) -> list[dict[str, Any]]:
    info = read_info(root)
    videos = [name for name, feature in info.features.items() if feature.dtype == "video"]
    parts = ("chunk_index", "file_index")
    names = ["episode_index", "tasks", "length", "dataset_from_index", "dataset_to_index"]
    names += [f"data/{part}" for part in parts]
    names += [f"videos/{name}/{part}" for name in videos for part in (*parts, "from_timestamp")]
    files = sorted((root / "meta/episodes").glob("*/*.parquet"))
    if not files:
        raise FileNotFoundError(
            f"{root / 'meta/episodes'}: holds no Parquet files; copy or download the data set again"
        )
    return [row for path in files for row in read_rows(path, names)]


def _episode(row: dict[str, Any], info: Info, where: str) -> Episode:
    index, length = row["episode_index"], _whole(row, "length", where)
    if length < 1:
        raise ValueError(f"{where}: has length {length}, expected at least 1")
    videos = [name for name, feature in info.features.items() if feature.dtype == "video"]
    episode = Episode(length, read(list[str], row.get("tasks") or [], f"{where}: tasks"), "")
    if info.codebase_version == "v3.0":
        begin, end = (_whole(row, f"dataset_{word}_index", where) for word in ("from", "to"))
        if end - begin != length:
            raise ValueError(f"{where}: has length {length}, but rows {begin} to {end} of the data set")
        episode.data = filled(info.data_path, _place(row, "data", where), where)
        for name in videos:
            place = {"video_key": name, **_place(row, f"videos/{name}", where)}
            begin_s = read(float, row.get(f"videos/{name}/from_timestamp"), f"{where}: videos/{name}/from_timestamp")
            episode.videos[name] = filled(info.video_path or "", place, where), begin_s
        return episode
    place = {"episode_chunk": index // info.chunks_size, "episode_index": index}
    episode.data = filled(info.data_path, place, where)
    episode.videos = {
        name: (filled(info.video_path or "", {"video_key": name, **place}, where), 0.0) for name in videos
    }
    return episode


def _place(row: dict[str, Any], prefix: str, where: str) -> dict[str, str | int]:
    return {part: _whole(row, f"{prefix}/{part}", where) for part in ("chunk_index", "file_index")}


def _whole(row: dict[str, Any], name: str, where: str) -> int:
    return read(Annotated[int, Range(0, 10**12)], row.get(name), f"{where}: {name}")


def _tasks(root: Path, v3: bool) -> list[str]:
    """The tasks in the order of their numbers."""
    path = root / ("meta/tasks.parquet" if v3 else "meta/tasks.jsonl")
    rows = read_rows(path, ["task_index", "task", "__index_level_0__"]) if v3 else _lines(path)
    found = {_whole(row, "task_index", str(path)): row.get("task", row.get("__index_level_0__")) for row in rows}
    return read(list[str], [found[index] for index in sorted(found)], str(path))


def _statistics(root: Path) -> Mapping[str, Any]:
    path, lines = root / STATISTICS, root / "meta/episodes_stats.jsonl"
    if path.is_file():
        return read(dict[str, Any], parsed(read_bounded(path), str(path)), str(path))
    if lines.is_file():
        per_episode = [read(dict[str, dict[str, Any]], row.get("stats"), str(lines)) for row in _lines(lines)]
        return aggregated(per_episode, str(lines))
    return {}


def _lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a JSON Lines file."""
    lines = read_bounded(path).splitlines()
    where = [f"{path}, line {number}" for number in range(1, len(lines) + 1)]
    return [read(dict[str, Any], parsed(line, at), at) for line, at in zip(lines, where, strict=True) if line.strip()]
