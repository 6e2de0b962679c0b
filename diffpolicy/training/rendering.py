"""Observations that a data set lacks, drawn by the env from states that it holds, and kept for the next run.

`data.render={pixels: [state]}` asks the env of the task: its `observe_state(state)` takes a row of the named arrays,
joined, and returns an observation, of which `pixels` is kept. An env of yours needs this method only. If what it draws
changes, raise `metadata["observe_version"]`.

The drawn arrays lie in a data set of their own, named by a hash of states, env and version. Episodes are appended to it
one by one, so an interrupted process leaves whole episodes, and the next one continues.
"""

import hashlib
import json
import logging
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from diffpolicy.data.locate import cache_folder
from diffpolicy.data.replay_buffer import ReplayBuffer
from diffpolicy.data.source import DataSource, WithArrays
from diffpolicy.evaluation.settings import EnvConfig
from diffpolicy.system.files import sync_tree
from diffpolicy.system.lock import FileLock
from diffpolicy.system.schema import read
from diffpolicy.training.drawing import all_drawn, tried
from diffpolicy.training.settings import DataConfig

ROWS_PER_TASK = 256
WAIT_S = 0.5

log = logging.getLogger(__name__)


def with_rendered(source: DataSource, data: DataConfig, env: EnvConfig | None, limit_s: float) -> DataSource:
    """The data set with the arrays that `data.render` names, drawn unless they are in the cache.

    Args:
        env: draws them.
        limit_s: how long a process may take for some hundred frames.

    Raises:
        ValueError: the settings do not fit, or the env cannot observe stored states.
        OSError: they cannot be written, for example because the disk is full.
        ChildProcessError: a process that draws died or took too long.
    """
    wanted = read(dict[str, list[str]], data.render, "data: render")
    if env is None:
        raise ValueError("data: render needs the env that draws; to train without evaluation, raise evaluate_every")
    for key, parts in wanted.items():
        if key in source.specs:
            raise ValueError(f"{source.location}: data.render names {key}, which the data set has; leave render out")
        if unknown := [part for part in parts if part not in source.specs]:
            raise ValueError(f"{source.location}: data.render names {unknown}; the data set has {source.keys}")
    states = {key: _joined([source[part] for part in parts]) for key, parts in wanted.items()}
    n_episodes = min(data.episodes or source.n_episodes, source.n_episodes)
    drawing = Drawing(env, states, source.episode_ends, Path(data.cache or cache_folder()) / "rendered")
    return WithArrays(source, drawing.finished(n_episodes, data.workers, limit_s))


class Drawing:
    """The drawn observations of a data set, which grow by whole episodes.

    Args:
        states: {key of the env's observation: [n_steps, features]}.
        ends: one past the last row of each episode.
        folder: holds all that is drawn.
    """

    def __init__(self, env: EnvConfig, states: Mapping[str, np.ndarray], ends: np.ndarray, folder: Path) -> None:
        self._env, self._states, self._ends = env, states, ends
        self._one, version = tried(env, states)
        name = re.sub(r"[^A-Za-z0-9]+", "-", env.id.rpartition("/")[2])
        self.path = folder / f"{name}-{self._digest(version)[:16]}.zarr"

    def finished(self, n_episodes: int, workers: int, limit_s: float) -> ReplayBuffer:
        """The first episodes, drawn where they are missing; other processes wait meanwhile."""
        if (found := self._opened(n_episodes)) is not None:
            return found
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with _taken(FileLock(self.path.with_suffix(".lock"), str(self.path))):
            if (found := self._opened(n_episodes)) is not None:  # by the process that had the lock
                return found
            rows = int(self._ends[n_episodes - 1])
            size = rows * sum(one.nbytes for one in self._one.values()) / 1e9
            log.warning(
                f"rendering {n_episodes} episodes, {rows} frames ({size:.1f} GB in memory), into {self.path}; "
                "data.cache=FOLDER chooses another folder"
            )
            try:
                self._draw(n_episodes, workers, limit_s)
            except OSError as error:
                kind = ChildProcessError if isinstance(error, ChildProcessError) else OSError
                raise kind(
                    f"rendering into {self.path}: {error}; whole episodes are kept, so the same command goes on. "
                    "data.cache=FOLDER chooses another folder"
                ) from error
        found = self._opened(n_episodes)
        if found is None:
            raise OSError(f"rendering: {self.path} was changed or removed meanwhile; run the same command again")
        return found

    def _opened(self, n_episodes: int) -> ReplayBuffer | None:
        """The buffer if it has as many episodes."""
        try:
            found = ReplayBuffer.open(self.path)
        except (FileNotFoundError, ValueError):  # a power cut may damage files
            return None
        if found.n_episodes >= n_episodes and (found.episode_ends[:n_episodes] == self._ends[:n_episodes]).all():
            return found
        found.close()
        return None

    def _draw(self, n_episodes: int, workers: int, limit_s: float) -> None:
        buffer = self._appendable()
        done = buffer.n_episodes
        starts = np.concatenate([[0], self._ends])
        tasks = list(_tasks(self._ends[done:n_episodes], int(starts[done])))
        total = int(self._ends[n_episodes - 1])
        blocks = [{key: rows[one[0][0] : one[-1][1]] for key, rows in self._states.items()} for one in tasks]
        with tqdm(total=total, initial=int(starts[done]), desc="rendering", unit="frame", dynamic_ncols=True) as bar:
            for task, drawn in zip(tasks, all_drawn(self._env, blocks, workers, limit_s), strict=True):
                for start, stop in task:
                    rows = slice(start - task[0][0], stop - task[0][0])
                    buffer.append_episode({key: values[rows] for key, values in drawn.items()})
                    bar.update(stop - start)
        buffer.close()
        sync_tree(self.path)

    def _appendable(self) -> ReplayBuffer:
        try:
            found = ReplayBuffer.open(self.path, mode="a")
            if (found.episode_ends == self._ends[: found.n_episodes]).all():
                return found
        except FileNotFoundError:
            pass
        except ValueError as error:
            log.warning(f"rendering begins anew: {error}")
        shutil.rmtree(self.path, ignore_errors=True)
        return ReplayBuffer.create(self.path, {key: (one.shape, one.dtype) for key, one in self._one.items()})

    def _digest(self, version: Any) -> str:
        described = {"env": self._env.id, "kwargs": self._env.kwargs, "version": version}
        digest = hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode())
        for name, values in {**self._states, "": self._ends}.items():
            digest.update(f"{name} {values.dtype.str} {values.shape}\n".encode())
            digest.update(np.ascontiguousarray(values).data)
        return digest.hexdigest()


def _joined(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([one.reshape(len(one), -1) for one in arrays], axis=1)


def _tasks(ends: np.ndarray, start: int) -> Iterator[list[tuple[int, int]]]:
    """Consecutive episodes [(first row, one past the last)], so many together that a process has something to do."""
    task: list[tuple[int, int]] = []
    for end in ends.tolist():
        task.append((start, end))
        start = end
        if end - task[0][0] >= ROWS_PER_TASK:
            yield task
            task = []
    if task:
        yield task


@contextmanager
def _taken(lock: FileLock) -> Iterator[None]:
    """Hold a lock, after waiting for another process that holds it."""
    is_told = False
    while True:
        try:
            lock.acquire()
            break
        except BlockingIOError as error:
            if not is_told:
                log.warning(f"rendering: waiting, because {str(error).partition(';')[0]}")
            is_told = True
            time.sleep(WAIT_S)
    try:
        yield
    finally:
        lock.release()
