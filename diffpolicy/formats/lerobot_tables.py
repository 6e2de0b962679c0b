"""The Parquet tables of a LeRobot data set: columns of numbers, meta/episodes and meta/tasks.parquet."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES_PATH = "meta/episodes/chunk-000/file-000.parquet"
EPISODES_PER_GROUP = 1000


def column(values: np.ndarray) -> pa.Array:
    """Numbers [n, *row] as a column: single numbers as such, vectors as lists of fixed size, others as nested lists."""
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    sizes = values.shape[1:]
    if sizes in ((), (1,)):
        return flat
    if len(sizes) == 1:
        return pa.FixedSizeListArray.from_arrays(flat, sizes[0])
    for size in reversed(sizes):
        offsets = np.arange(0, len(flat) + 1, size, dtype=np.int32)
        flat = pa.ListArray.from_arrays(pa.array(offsets), flat)
    return flat


def write_episodes(folder: Path, rows: Sequence[Mapping[str, Any]], statistics: Sequence[Mapping[str, Any]]) -> None:
    """Write meta/episodes: one row per episode, with its statistics in columns stats/FEATURE/NAME."""
    path = folder / EPISODES_PATH
    path.parent.mkdir(parents=True, exist_ok=True)
    writer: pq.ParquetWriter | None = None
    for first in range(0, len(rows), EPISODES_PER_GROUP):
        chosen = slice(first, first + EPISODES_PER_GROUP)
        complete = [
            {**row, **_flat(found), "meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}
            for row, found in zip(rows[chosen], statistics[chosen], strict=True)
        ]
        table = pa.Table.from_pylist(complete)
        writer = writer or pq.ParquetWriter(path, table.schema, compression="snappy")
        writer.write_table(table)
    if writer is not None:
        writer.close()


def write_tasks(folder: Path, tasks: Sequence[str]) -> None:
    """Write meta/tasks.parquet as pandas would write a frame with the column task_index and the tasks as its index."""
    name = "__index_level_0__"
    described = [
        {"name": "task_index", "field_name": "task_index", "pandas_type": "int64", "numpy_type": "int64"},
        {"name": None, "field_name": name, "pandas_type": "unicode", "numpy_type": "object"},
    ]
    head = {"name": None, "field_name": None, "pandas_type": "unicode", "numpy_type": "object"}
    pandas = {
        "index_columns": [name],
        "column_indexes": [{**head, "metadata": {"encoding": "UTF-8"}}],
        "columns": [{**each, "metadata": None} for each in described],
        "pandas_version": "2.2.0",
    }
    table = pa.table({"task_index": pa.array(range(len(tasks)), pa.int64()), name: pa.array(tasks, pa.string())})
    pq.write_table(table.replace_schema_metadata({"pandas": json.dumps(pandas)}), folder / "meta/tasks.parquet")


def _flat(statistics: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, Any]:
    return {f"stats/{name}/{key}": value.tolist() for name, found in statistics.items() for key, value in found.items()}
