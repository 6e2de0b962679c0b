"""Writing a LeRobot data set of version 3.0: meta/, data/ and, if images go to videos, videos/."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from diffpolicy.formats.images import as_bytes, encode, is_image
from diffpolicy.formats.lerobot_meta import INFO, STATISTICS
from diffpolicy.formats.lerobot_names import Names, Was, feature_names, write_names
from diffpolicy.formats.lerobot_tables import DATA_PATH, VIDEO_PATH, column, write_episodes, write_tasks
from diffpolicy.formats.recording import Recording
from diffpolicy.formats.statistics import PixelCounts, aggregated, of_numbers
from diffpolicy.formats.video_writer import VideoFiles

CHUNKS_SIZE, DATA_FILE_MB, VIDEO_FILE_MB = 1000, 100, 200  # what LeRobot writes
BLOCK_BYTES = 64 * 2**20  # of images, in memory


def write_lerobot(
    source: Recording, keys: list[str], folder: Path, fps: float | None, use_videos: bool, task: str
) -> None:
    """Write the arrays `keys` of a data set into the new `folder`.

    Args:
        fps: steps per second, where the data set does not say it.
        use_videos: encode images as AV1, with loss; otherwise they are PNG in the Parquet files, which is exact.
        task: the task of episodes that have none.

    Raises:
        ValueError: there is no rate, or an array cannot be stored.
    """
    rate = source.about.get("fps") or fps
    if not rate:
        raise ValueError(f"{source.location}: does not say how many steps per second it has; give fps=NUMBER")
    Writer(source, keys, folder, float(rate), use_videos, task).write()


class Writer:
    """Writes one data set, an episode at a time."""

    def __init__(
        self, source: Recording, keys: list[str], folder: Path, fps: float, use_videos: bool, task: str
    ) -> None:
        self._source, self._folder, self._fps, self._task = source, folder, fps, task
        keys = [key for key in keys if key != "task_index"]
        self._images = {key: is_image(source.specs[key][0], np.dtype(source.specs[key][1])) for key in keys}
        self._names = feature_names(self._images)
        self._use_videos = use_videos
        self._tasks: list[str] = []
        self._videos = {
            self._names[key]: VideoFiles(folder, VIDEO_PATH, self._names[key], fps, VIDEO_FILE_MB)
            for key, each in self._images.items()
            if each and use_videos
        }
        self._parquet: pq.ParquetWriter | None = None
        self._file = -1

    def write(self) -> None:
        """Write everything."""
        ends = self._source.episode_ends.tolist()
        episodes, statistics = [], []
        try:
            for index, end in enumerate(tqdm(ends, desc=self._source.location, unit="episode")):
                row, found = self._episode(index, ends[index - 1] if index else 0, end)
                episodes.append(row)
                statistics.append(found)
        finally:
            if self._parquet is not None:
                self._parquet.close()
            for videos in self._videos.values():
                videos.close()
        write_episodes(self._folder, episodes, statistics)
        write_tasks(self._folder, self._tasks)
        self._write_json(INFO, self._info(len(ends)))
        self._write_json(STATISTICS, aggregated(statistics, self._source.location))
        arrays = {name: Was(key, list(self._source.specs[key][0])) for key, name in self._names.items()}
        write_names(self._folder, Names(1, arrays, self._source.episode_attributes, self._source.about))

    def _episode(self, index: int, start: int, end: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Write one episode: its row of meta/episodes, and its statistics."""
        length = end - start
        tasks, task_index = self._task_indices(index, start, end)
        steps = np.arange(length)
        indices = {
            "timestamp": (steps / self._fps).astype(np.float32),
            "frame_index": steps,
            "episode_index": np.full(length, index),
            "index": np.arange(start, end),
            "task_index": task_index,
        }
        columns: dict[str, pa.Array] = {}
        statistics: dict[str, Any] = {}
        place: dict[str, Any] = {}
        for key, name in self._names.items():
            if not self._images[key]:
                values = self._source.rows(key, start, end)
                columns[name], statistics[name] = column(values), of_numbers(values)
                continue
            stored, statistics[name] = self._image_column(key, name, start, end)
            if stored is None:
                place |= self._videos[name].end_episode()
            else:
                columns[name] = stored
        columns |= {name: pa.array(values) for name, values in indices.items()}
        statistics |= {name: of_numbers(values) for name, values in indices.items()}
        chunk, file = self._write_rows(pa.table(columns))
        row = {"episode_index": index, "tasks": tasks, "length": length}
        row |= {"data/chunk_index": chunk, "data/file_index": file}
        return {**row, "dataset_from_index": start, "dataset_to_index": end, **place}, statistics

    def _image_column(self, key: str, name: str, start: int, end: int) -> tuple[pa.Array | None, dict[str, Any]]:
        """The images of an episode as a column, None if they went to the video, and their statistics."""
        shape, dtype = self._source.specs[key]
        counts = PixelCounts(shape[-1])
        block = max(1, BLOCK_BYTES // (int(np.prod(shape)) * np.dtype(dtype).itemsize))
        encoded = []
        for first in range(start, end, block):
            rows = self._source.rows(key, first, min(first + block, end))
            pixels = as_bytes(rows, f"{self._source.location}: array {key}")
            counts.add(pixels)
            if self._use_videos:
                self._videos[name].add(pixels)
            else:
                numbered = enumerate(pixels, start=first - start)
                encoded += [{"bytes": encode(each), "path": f"frame-{i:06d}.png"} for i, each in numbered]
        kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
        return None if self._use_videos else pa.array(encoded, kind), counts.statistics()

    def _task_indices(self, index: int, start: int, end: int) -> tuple[list[str], np.ndarray]:
        """The tasks of an episode, and the number of the task in each step."""
        known = self._source.about.get("tasks")
        if isinstance(known, list) and "task_index" in self._source.specs:
            self._tasks = known
            numbers = self._source.rows("task_index", start, end).reshape(-1).astype(np.int64)
            if numbers.min() < 0 or numbers.max() >= len(known):
                raise ValueError(f"{self._source.location}: task_index of episode {index} names none of {known}")
            return [known[number] for number in np.unique(numbers)], numbers
        tasks = self._source.episode_attributes[index].get("tasks") or [self._task]
        if tasks[0] not in self._tasks:
            self._tasks.append(tasks[0])
        return tasks[:1], np.full(end - start, self._tasks.index(tasks[0]))

    def _write_rows(self, table: pa.Table) -> tuple[int, int]:
        """Append rows to the current file, or begin another one when it is full: (chunk, file)."""
        path = self._data_path()
        if self._parquet is None or path.stat().st_size > DATA_FILE_MB * 2**20:
            if self._parquet is not None:
                self._parquet.close()
            self._file += 1
            path = self._data_path()
            path.parent.mkdir(parents=True, exist_ok=True)
            self._parquet = pq.ParquetWriter(path, table.schema, compression="snappy")
        self._parquet.write_table(table)
        return divmod(self._file, CHUNKS_SIZE)

    def _data_path(self) -> Path:
        chunk, file = divmod(max(self._file, 0), CHUNKS_SIZE)
        return self._folder / DATA_PATH.format(chunk_index=chunk, file_index=file)

    def _info(self, n_episodes: int) -> Mapping[str, Any]:
        features: dict[str, Any] = {}
        was = self._source.about.get("features", {})
        for key, name in self._names.items():
            shape, dtype = self._source.specs[key]
            feature = {"dtype": np.dtype(dtype).name, "shape": list(shape) or [1], "names": None}
            if self._images[key]:
                feature |= {"dtype": "video" if self._use_videos else "image", "names": ["height", "width", "channels"]}
            elif isinstance(was.get(name), dict):
                feature["names"] = was[name].get("names")
            if self._images[key] and self._use_videos:
                feature["info"] = self._videos[name].info(*shape)
            features[name] = feature
        index = {"dtype": "int64", "shape": [1], "names": None}
        features |= {"timestamp": {**index, "dtype": "float32"}}
        features |= dict.fromkeys(("frame_index", "episode_index", "index", "task_index"), index)
        return {
            "codebase_version": "v3.0",
            "robot_type": self._source.about.get("robot_type"),
            "total_episodes": n_episodes,
            "total_frames": self._source.n_steps,
            "total_tasks": len(self._tasks),
            "chunks_size": CHUNKS_SIZE,
            "data_files_size_in_mb": DATA_FILE_MB,
            "video_files_size_in_mb": VIDEO_FILE_MB,
            "fps": int(self._fps) if self._fps.is_integer() else self._fps,
            "splits": {"train": f"0:{n_episodes}"},
            "data_path": DATA_PATH,
            "video_path": VIDEO_PATH if self._videos else None,
            "features": features,
        }

    def _write_json(self, name: str, content: Any) -> None:
        (self._folder / name).write_text(json.dumps(content, indent=4, ensure_ascii=False), encoding="utf-8")
