"""Attempts of an expert and the recording that stores them; shared by recording with one and with several processes."""

from collections import deque
from collections.abc import Generator, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

from diffpolicy.data.replay_buffer import ReplayBuffer
from diffpolicy.system.pool import Pool

SEEDS_PER_SET = 1_000_000  # evaluation uses the seeds below the first set
FAILURES_IN_A_ROW = 100

Request = dict[str, Any]
"""Everything that the episodes depend on: task, expert_version, seed, settings, and of corrections the policy."""


class Expert(Protocol):
    """What an expert's module offers."""

    VERSION: int
    SPECS: Any  # arrays of an episode, see `ReplayBuffer.create`
    Settings: Any  # a dataclass

    def demonstrate(self, seed: int, settings: Any) -> Any:
        """The episode of a seed, with `arrays` and `attributes`; None if the expert fails."""
        ...


def first_seed(request: Request) -> int:
    """The first seed of the set that `request` asks for."""
    return SEEDS_PER_SET * (request["seed"] + 1)


def attempts(
    expert: Expert, seeds: Iterable[int], request: Request, workers: int, limit_s: float
) -> Generator[tuple[int, Any]]:
    """Yield (seed, episode or None) in the order of the seeds; closing the generator ends the workers.

    Raises:
        ChildProcessError: a worker died, or took longer than `limit_s` for an attempt.
    """
    settings = expert.Settings(**request["settings"])
    if workers == 1:
        for seed in seeds:
            yield seed, expert.demonstrate(seed, settings)
        return
    with closing(Pool(workers, "records demonstrations", limit_s, "limit_s")) as pool:
        waiting: deque = deque()
        for seed in seeds:
            waiting.append((seed, pool.submit(expert.demonstrate, seed, settings)))
            if len(waiting) > 3 * workers:
                oldest, future = waiting.popleft()
                yield oldest, pool.result(future)
        for oldest, future in waiting:
            yield oldest, pool.result(future)


def open_recording(recording: Path, expert: Expert, request: Request, episodes: int) -> ReplayBuffer:
    """Open the recording to resume, or create it.

    Raises:
        ValueError: it was made for another request, or has more than `episodes` episodes.
    """
    if not recording.exists():
        return ReplayBuffer.create(recording, expert.SPECS)
    buffer = ReplayBuffer.open(recording, mode="a")
    check_request(recording, buffer, request)
    if buffer.n_episodes > episodes:
        raise ValueError(f"{recording}: holds {buffer.n_episodes} episodes, expected at most {episodes}; remove it")
    return buffer


def append(buffer: ReplayBuffer, request: Request, arrays: Any, attributes: dict[str, Any]) -> None:
    """Append an episode; the attributes of the first one store the request."""
    asked = {"request": request} if buffer.n_episodes == 0 else {}
    buffer.append_episode(arrays, {**attributes, **asked})


def check_request(path: Path, buffer: ReplayBuffer, request: Request) -> None:
    """Raise ValueError, naming the differences, if the data set was made for another request."""
    if buffer.n_episodes == 0:
        return
    found, asked = _flat(buffer.episode_attributes[0].get("request", {})), _flat(request)
    differing = [key for key in sorted({*found, *asked}) if found.get(key) != asked.get(key)]
    if differing:
        made = ", ".join(f"{key} {found.get(key)} (expected {asked.get(key)})" for key in differing)
        raise ValueError(f"{path}: exists, made with {made}; remove it or name another output")


def given_up(request: Request, failures: int) -> ValueError:
    """The error to raise when the expert failed too many times in a row."""
    if "policy" in request:
        return ValueError(
            f"{failures} attempts in a row without a correction: the policy solved all its episodes, or the expert "
            f"failed with {request['settings']}"
        )
    return ValueError(f"expert failed {failures} times in a row with {request['settings']}; change a setting")


def _flat(request: Request) -> Request:
    return {**request, **request.get("settings", {}), "settings": None}
