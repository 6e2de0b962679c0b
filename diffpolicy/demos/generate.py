"""Records demonstrations from a scripted expert into one file, with one process, several workers, or torchrun."""

import importlib
import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from tqdm import tqdm

from diffpolicy.data.replay_buffer import ReplayBuffer
from diffpolicy.demos.corrections import Corrections
from diffpolicy.demos.parts import join_parts, record_parts, remove_parts
from diffpolicy.demos.recording import (
    FAILURES_IN_A_ROW,
    Expert,
    Request,
    append,
    attempts,
    check_request,
    first_seed,
    given_up,
    open_recording,
)
from diffpolicy.system.distributed import ALONE, Ranks
from diffpolicy.system.lock import FileLock
from diffpolicy.system.time_limits import LimitsConfig

# Task -> module of an `Expert`.
EXPERTS = {"pusht": "diffpolicy_envs.experts.pusht", "reach": "diffpolicy_envs.experts.reach"}


def generate(
    task: str,
    episodes: int,
    seed: int,
    output: Path,
    workers: int = 1,
    settings: dict[str, Any] | None = None,
    ranks: Ranks = ALONE,
    limit_s: float = LimitsConfig.data_s,
    checkpoint: str | None = None,
) -> Path:
    """Write `episodes` demonstrations of a task's expert to the .zip `output`, unless it exists; returns it.

    Args:
        seed: number of the set; its start states use the seeds from 1,000,000 * (seed + 1) on.
        workers: processes to record with; the result does not depend on their number.
        settings: fields of the expert's settings that differ from their defaults.
        limit_s: how long a worker may take for one attempt.
        checkpoint: of a policy, to record `Corrections` of its failures instead.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: an argument is unknown, out of range, or not that with which `output` was made; the expert fails too
            many times in a row; or there are more processes than episodes.
        BlockingIOError: another process is recording `output`.
        ChildProcessError: a worker died or took too long.
    """
    _check(episodes, seed, output, workers)
    ranks.shard(range(episodes))
    expert = _expert(task, checkpoint)
    request = _request(task, expert, seed, settings or {})
    if output.exists():
        _check_finished(output, request, episodes)
        return output
    output.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(output.with_name(f".{output.name}.lock"), str(output)) if ranks.is_first else nullcontext():
        record = _record if ranks.count == 1 else partial(_record_together, ranks=ranks)
        record(output, expert, request, episodes, workers, limit_s)
    return output


@contextmanager
def _packed(output: Path, expert: Expert, request: Request, episodes: int) -> Iterator[ReplayBuffer]:
    """Yield a recording next to `output` and pack it into `output` at the end; after an error it can be resumed."""
    recording = output.with_name(output.name + ".recording")
    buffer = open_recording(recording, expert, request, episodes)
    yield buffer
    buffer.pack(output)
    shutil.rmtree(recording)


def _record(output: Path, expert: Expert, request: Request, episodes: int, workers: int, limit_s: float) -> None:
    """Append demonstrations in the order of their seeds until there are `episodes` of them."""
    with _packed(output, expert, request, episodes) as buffer:
        done = buffer.episode_attributes
        seeds = count(done[-1]["seed"] + 1 if done else first_seed(request))
        failures = 0
        with (
            tqdm(total=episodes, initial=buffer.n_episodes, desc=output.name, unit="episode") as progress,
            closing(attempts(expert, seeds, request, workers, limit_s)) as all_attempts,
        ):
            while buffer.n_episodes < episodes:
                seed, episode = next(all_attempts)
                failures = failures + 1 if episode is None else 0
                if failures == FAILURES_IN_A_ROW:
                    raise given_up(request, failures)
                if episode is not None:
                    append(buffer, request, episode.arrays, {"seed": seed, **episode.attributes})
                    progress.update()


def _record_together(
    output: Path, expert: Expert, request: Request, episodes: int, workers: int, limit_s: float, ranks: Ranks
) -> None:
    """Record a part in each process of torchrun; the first joins them."""
    record_parts(output, expert, request, episodes, workers, ranks, limit_s)
    if ranks.is_first:
        with _packed(output, expert, request, episodes) as buffer:
            join_parts(output, buffer, request, episodes, ranks)
        remove_parts(output, ranks)
    ranks.largest(0)  # wait: if a process ended now, torchrun would end the first, which may be writing


def _check_finished(output: Path, request: dict[str, Any], episodes: int) -> None:
    buffer = ReplayBuffer.open(output)
    try:
        check_request(output, buffer, request)
        if buffer.n_episodes != episodes:
            raise ValueError(f"{output}: exists with {buffer.n_episodes} episodes, expected {episodes}; remove it")
    finally:
        buffer.close()


def _check(episodes: int, seed: int, output: Path, workers: int) -> None:
    for name, value, low in (("episodes", episodes, 1), ("seed", seed, 0), ("workers", workers, 1)):
        if not isinstance(value, int) or isinstance(value, bool) or value < low:
            raise ValueError(f"{name} is {value!r}; expected a whole number, at least {low}")
    if seed > 4000:
        raise ValueError(f"seed is {seed}; expected at most 4000")  # seeds of start states have 32 bits
    if output.suffix != ".zip":
        raise ValueError(f"output is {str(output)!r}; expected a name that ends in .zip (typically .zarr.zip)")


def _expert(task: str, checkpoint: str | None) -> Any:
    if task not in EXPERTS:
        raise ValueError(f"task is {task!r}; expected one with an expert: {sorted(EXPERTS)}")
    expert = importlib.import_module(EXPERTS[task])
    return expert if checkpoint is None else Corrections(expert, checkpoint)


def _request(task: str, expert: Any, seed: int, settings: dict[str, Any]) -> Request:
    policy = {"policy": expert.policy} if isinstance(expert, Corrections) else {}
    chosen = asdict(_settings(expert, settings))
    return {"task": task, "expert_version": expert.VERSION, "seed": seed, "settings": chosen, **policy}


def _settings(expert: Expert, settings: dict[str, Any]) -> Any:
    known = sorted(expert.Settings.__dataclass_fields__)
    if not set(settings) <= set(known):
        raise ValueError(f"expert has settings {sorted(settings)}; expected some of {known}")
    return expert.Settings(**settings)
