"""Record demonstrations of a scripted expert.

python scripts/generate_demos.py task=pusht episodes=1750 output=FILE.zarr.zip

Interrupt it at any time and run it again: it goes on where it stopped. Episodes gather in a directory beside the
output, which is packed and removed at the end.
"""

import importlib
import shutil
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType
from typing import Any

from cli import command
from omegaconf import MISSING
from tqdm import tqdm

from diffpolicy.data.replay_buffer import ReplayBuffer

# Task -> module with VERSION, SPECS, Settings and demonstrate(seed, settings) -> Episode or None where it failed.
EXPERTS = {"pusht": "diffpolicy_envs.experts.pusht", "reach": "diffpolicy_envs.experts.reach"}
SEEDS_PER_SET = 1_000_000  # evaluation seeds lie below the first set's
FAILURES_IN_A_ROW = 100


@dataclass
class GenerateConfig:
    """configs/generate.yaml."""

    task: str = MISSING
    episodes: int = 1750
    seed: int = 0
    output: str = MISSING
    workers: int = 1
    expert: dict[str, Any] = field(default_factory=dict)
    data: Any = None  # these come with the task, not used
    env: Any = None
    trainer: Any = None
    window: Any = None


def generate(
    task: str, episodes: int, seed: int, output: Path, workers: int = 1, settings: dict[str, Any] | None = None
) -> Path:
    """Write `episodes` successful demonstrations of a task's expert to the .zip `output`.

    Args:
        settings: fields of the expert's settings that differ from their defaults.

    Raises:
        ValueError: an unknown task or setting, numbers out of range, an output made with other arguments, an expert
            that fails time after time.
    """
    expert = _expert(task)
    _check(episodes, seed, output, workers)
    request = {
        "task": task,
        "expert_version": expert.VERSION,
        "seed": seed,
        "settings": asdict(_settings(expert, settings or {})),
    }
    if output.exists():
        _check_finished(output, request, episodes)
        return output
    recording = output.with_name(output.name + ".recording")
    buffer = _open_recording(recording, expert, request, episodes)
    with tqdm(total=episodes, initial=buffer.n_episodes, desc=output.name, unit="episode") as progress:
        if buffer.n_episodes < episodes:
            _record(buffer, expert, request, episodes, workers, progress)
    buffer.pack(output)
    shutil.rmtree(recording)
    return output


def _record(
    buffer: ReplayBuffer, expert: ModuleType, request: dict[str, Any], episodes: int, workers: int, progress: tqdm
) -> None:
    """Append demonstrations in the order of their seeds until there are enough."""
    done = buffer.episode_attributes
    first = done[-1]["seed"] + 1 if done else SEEDS_PER_SET * (request["seed"] + 1)
    failures = 0
    with closing(_attempts(expert, first, expert.Settings(**request["settings"]), workers)) as attempts:
        for seed, episode in attempts:
            failures = failures + 1 if episode is None else 0
            if failures == FAILURES_IN_A_ROW:
                raise ValueError(
                    f"expert failed {failures} times in a row with {request['settings']}; change a setting"
                )
            if episode is None:
                continue
            attributes: dict[str, Any] = {"seed": seed, **episode.attributes}
            if buffer.n_episodes == 0:
                attributes["request"] = request
            buffer.append_episode(episode.arrays, attributes)
            progress.update()
            if buffer.n_episodes == episodes:
                return


def _attempts(expert: ModuleType, first: int, settings: Any, workers: int) -> Generator[tuple[int, Any]]:
    """(seed, episode or None) from seed `first` on, in order, whoever finishes first; closing it ends the workers."""
    if workers == 1:
        for seed in count(first):
            yield seed, expert.demonstrate(seed, settings)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        waiting: deque = deque()
        try:
            for seed in count(first):
                with _interrupts_ignored():  # the processes start with the first task
                    waiting.append((seed, pool.submit(expert.demonstrate, seed, settings)))
                if len(waiting) > 3 * workers:
                    oldest, future = waiting.popleft()
                    yield oldest, future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Processes started meanwhile ignore Ctrl-C, which a terminal sends to all: this one ends them, in order."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may change what a signal does
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def _open_recording(recording: Path, expert: ModuleType, request: dict[str, Any], episodes: int) -> ReplayBuffer:
    if not recording.exists():
        return ReplayBuffer.create(recording, expert.SPECS)
    buffer = ReplayBuffer.open(recording, mode="a")
    _check_request(recording, buffer, request)
    if buffer.n_episodes > episodes:
        raise ValueError(f"{recording}: holds {buffer.n_episodes} episodes, expected at most {episodes}; remove it")
    return buffer


def _check_finished(output: Path, request: dict[str, Any], episodes: int) -> None:
    buffer = ReplayBuffer.open(output)
    try:
        _check_request(output, buffer, request)
        if buffer.n_episodes != episodes:
            raise ValueError(f"{output}: exists with {buffer.n_episodes} episodes, expected {episodes}; remove it")
    finally:
        buffer.close()


def _check_request(path: Path, buffer: ReplayBuffer, request: dict[str, Any]) -> None:
    if buffer.n_episodes == 0:
        return
    found, asked = _flat(buffer.episode_attributes[0].get("request", {})), _flat(request)
    differing = [key for key in sorted({*found, *asked}) if found.get(key) != asked.get(key)]
    if differing:
        made = ", ".join(f"{key} {found.get(key)} (expected {asked.get(key)})" for key in differing)
        raise ValueError(f"{path}: exists, made with {made}; remove it or name another output")


def _flat(request: dict[str, Any]) -> dict[str, Any]:
    return {**request, **request.get("settings", {}), "settings": None}


def _check(episodes: int, seed: int, output: Path, workers: int) -> None:
    for name, value, low in (("episodes", episodes, 1), ("seed", seed, 0), ("workers", workers, 1)):
        if not isinstance(value, int) or isinstance(value, bool) or value < low:
            raise ValueError(f"{name} is {value!r}; expected a whole number, at least {low}")
    if seed > 4000:
        raise ValueError(f"seed is {seed}; expected at most 4000")  # start states take 32 bits
    if output.suffix != ".zip":
        raise ValueError(f"output is {str(output)!r}; expected a name that ends in .zip (by custom .zarr.zip)")


def _expert(task: str) -> ModuleType:
    if task not in EXPERTS:
        raise ValueError(f"task is {task!r}; expected one with an expert: {sorted(EXPERTS)}")
    return importlib.import_module(EXPERTS[task])


def _settings(expert: ModuleType, settings: dict[str, Any]) -> Any:
    known = sorted(expert.Settings.__dataclass_fields__)
    if not set(settings) <= set(known):
        raise ValueError(f"expert has settings {sorted(settings)}; expected some of {known}")
    return expert.Settings(**settings)


@command("generate", GenerateConfig)
def main(config: GenerateConfig, _: Path) -> None:
    output = Path(config.output)
    generate(config.task, config.episodes, config.seed, output, config.workers, config.expert)
    print(f"{output}: {config.episodes} episodes, {output.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
