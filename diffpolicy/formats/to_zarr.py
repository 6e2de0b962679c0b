"""Writing a data set in our zarr layout, chunk by chunk: in parallel, and going on after an interruption.

Until it is complete, the data set lies beside the output in .NAME.converting. Its chunks are written whole or not at
all, so a chunk that is there need not be written again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zarr
from tqdm import tqdm

from diffpolicy.data import store
from diffpolicy.data.checks import check_attributes, check_specs
from diffpolicy.data.groups import open_group
from diffpolicy.data.mark import write_mark
from diffpolicy.formats.recording import Recording
from diffpolicy.formats.zarr_source import ABOUT
from diffpolicy.system.files import sync_folder, sync_tree, write_text
from diffpolicy.system.lock import FileLock
from diffpolicy.system.plain import parsed, read_bounded
from diffpolicy.system.pool import Pool

PLAN = ".conversion.json"
CHUNKS_PER_PART = 32  # so many consecutive chunks are written by one process: a video is decoded in its order


@dataclass(frozen=True)
class Part:
    """Consecutive chunks of one array."""

    key: str
    chunks: range
    n_rows: int


def write_zarr(source: Recording, keys: list[str], output: Path, workers: int, limit_s: float) -> None:
    """Write the arrays `keys` of a data set to the new directory `output`.

    Raises:
        ValueError: the source is damaged, or an unfinished conversion of something else is in the way.
        BlockingIOError: another process is writing it.
        ChildProcessError: a worker died, or took longer than `limit_s` for a part.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = output.with_name(f".{output.name}.converting")
    with FileLock(output.with_name(f".{output.name}.lock"), str(output)):
        _begin(source, keys, unfinished, output)
        _write_parts(source, list(_parts(unfinished, keys)), unfinished, workers, limit_s, output.name)
        _finish(source, keys, unfinished)
        os.rename(unfinished, output)
        sync_folder(output.parent)


def _begin(source: Recording, keys: list[str], unfinished: Path, output: Path) -> None:
    """Create the arrays, or check that those that are there belong to this conversion."""
    specs = {key: source.specs[key] for key in keys}
    check_specs(specs)
    plan = {
        "location": source.location,
        "arrays": {key: [list(shape), np.dtype(dtype).str] for key, (shape, dtype) in specs.items()},
        "ends": hashlib.sha256(source.episode_ends.tobytes()).hexdigest(),
    }
    if (unfinished / PLAN).is_file():
        if parsed(read_bounded(unfinished / PLAN), str(unfinished / PLAN)) != plan:
            raise ValueError(f"{unfinished}: an unfinished conversion of something else to {output}; remove it first")
        return
    shutil.rmtree(unfinished, ignore_errors=True)
    root = store.create_root(unfinished, specs)
    for key, (shape, _) in specs.items():
        _array(root, f"data/{key}").resize((source.n_steps, *shape))
    write_text(unfinished / PLAN, json.dumps(plan))


def _parts(unfinished: Path, keys: list[str]) -> Iterator[Part]:
    root = open_group(str(unfinished))
    for key in keys:
        array = _array(root, f"data/{key}")
        n_chunks = -(-array.shape[0] // array.chunks[0])
        for first in range(0, n_chunks, CHUNKS_PER_PART):
            chunks = range(first, min(first + CHUNKS_PER_PART, n_chunks))
            n_rows = min(chunks.stop * array.chunks[0], array.shape[0]) - first * array.chunks[0]
            yield Part(key, chunks, n_rows)


def _write_parts(
    source: Recording, parts: list[Part], unfinished: Path, workers: int, limit_s: float, name: str
) -> None:
    with tqdm(total=sum(part.n_rows for part in parts), desc=name, unit="row", unit_scale=True) as progress:
        if workers == 1:
            copier = Copier(source, unfinished)
            for part in parts:
                copier.write(part)
                progress.update(part.n_rows)
            return
        with closing(Pool(workers, "converts", limit_s, "limit_s", _begin_worker, (source, unfinished))) as pool:
            waiting: list[tuple[Part, Future[None]]] = [(part, pool.submit(_write, part)) for part in parts]
            for part, future in waiting:
                pool.result(future)
                progress.update(part.n_rows)


def _finish(source: Recording, keys: list[str], unfinished: Path) -> None:
    """Write what makes the chunks a data set: attributes, the ends of the episodes, and the mark."""
    root = open_group(str(unfinished), "r+")
    attributes = [check_attributes(each, index) for index, each in enumerate(source.episode_attributes)]
    if attributes and source.about:
        attributes[0] |= check_attributes({ABOUT: source.about}, 0)
    if any(attributes):
        root["meta"].update_attributes({"episodes": attributes})
    ends = store.writable(_array(root, "meta/episode_ends"))
    ends.resize((source.n_episodes,))
    ends[:] = source.episode_ends
    write_mark(root, keys, source.episode_ends, attributes)
    for leftover in unfinished.rglob("*.partial"):  # of a chunk whose writer was killed
        leftover.unlink()
    (unfinished / PLAN).unlink()
    sync_tree(unfinished)


class Copier:
    """Writes the chunks that are not there yet."""

    def __init__(self, source: Recording, unfinished: Path) -> None:
        self._source, self._folder = source, unfinished
        self._root = open_group(str(unfinished), "r+")

    def write(self, part: Part) -> None:
        """Write a part; raises as `Recording.rows`."""
        array = store.writable(_array(self._root, f"data/{part.key}"))
        for chunk in part.chunks:
            place = "/".join(["c", str(chunk), *["0"] * (array.ndim - 1)])
            if not (self._folder / "data" / part.key / place).is_file():
                start, stop = chunk * array.chunks[0], min((chunk + 1) * array.chunks[0], array.shape[0])
                array[start:stop] = self._source.rows(part.key, start, stop)


def _array(root: zarr.Group, name: str) -> zarr.Array:
    found = root[name]
    assert isinstance(found, zarr.Array)
    return found


_copier: Copier | None = None  # in a worker process, set once by _begin_worker


def _begin_worker(source: Recording, unfinished: Path) -> None:
    global _copier
    _copier = Copier(source, unfinished)


def _write(part: Part) -> None:
    assert _copier is not None
    _copier.write(part)
