"""Recording with torchrun: each process records the demonstrations of its own seeds, and the first joins the parts.

The parts are stored next to the output, where all processes must be able to read them. They stay there if a run is
interrupted.
"""

import shutil
from contextlib import closing
from pathlib import Path

import torch
from tqdm import tqdm

from diffpolicy.data.replay_buffer import ReplayBuffer
from diffpolicy.demos.recording import (
    FAILURES_IN_A_ROW,
    Expert,
    Request,
    append,
    attempts,
    first_seed,
    given_up,
    open_recording,
)
from diffpolicy.system.distributed import Ranks

ROUND = 32  # most attempts per process between two counts of all processes, so that none waits long


def record_parts(
    output: Path, expert: Expert, request: Request, episodes: int, workers: int, ranks: Ranks, limit_s: float
) -> None:
    """Attempt the seeds in order, every count-th one in this process, until all have `episodes` demonstrations.

    Raises:
        ValueError: on all processes, if the expert fails too many times in a row.
    """
    part = open_recording(_part(output, ranks.rank, ranks.count), expert, request, episodes)
    made, failures, first = 0, 0, first_seed(request)
    with tqdm(total=episodes, desc=output.name, unit="episode", disable=not ranks.is_first) as progress:
        while made < episodes:
            after = first + ranks.count * min(ROUND, -(-(episodes - made) // ranks.count))
            seeds = range(first + ranks.rank, after, ranks.count)
            found = _record_round(part, expert, request, seeds, workers, limit_s)
            found = int(ranks.total(torch.tensor(found)))
            failures = 0 if found else failures + after - first
            if failures >= FAILURES_IN_A_ROW:
                raise given_up(request, failures)
            first, made = after, made + found
            progress.update(min(made, episodes) - progress.n)


def join_parts(output: Path, buffer: ReplayBuffer, request: Request, episodes: int, ranks: Ranks) -> None:
    """Append the first `episodes` demonstrations of all parts, in the order of their seeds, to `buffer`."""
    parts = [ReplayBuffer.open(_part(output, rank, ranks.count)) for rank in range(ranks.count)]
    known = [part.episode_attributes for part in parts]
    order = sorted((each["seed"], rank, i) for rank, all_of in enumerate(known) for i, each in enumerate(all_of))
    for _, rank, index in order[buffer.n_episodes : episodes]:
        attributes = {key: value for key, value in known[rank][index].items() if key != "request"}
        append(buffer, request, parts[rank].episode(index), attributes)


def remove_parts(output: Path, ranks: Ranks) -> None:
    """Delete the parts of all processes."""
    for rank in range(ranks.count):
        shutil.rmtree(_part(output, rank, ranks.count))


def _record_round(
    part: ReplayBuffer, expert: Expert, request: Request, seeds: range, workers: int, limit_s: float
) -> int:
    """Attempt the `seeds` that were not attempted before; returns how many of them all have a demonstration."""
    done = [each["seed"] for each in part.episode_attributes]
    left = [seed for seed in seeds if not done or seed > done[-1]]
    with closing(attempts(expert, left, request, workers, limit_s)) as all_attempts:
        for seed, episode in all_attempts:
            if episode is not None:
                append(part, request, episode.arrays, {"seed": seed, **episode.attributes})
                done.append(seed)
    return len(set(done) & set(seeds))


def _part(output: Path, rank: int, count: int) -> Path:
    return output.with_name(f"{output.name}.recording_{rank}_of_{count}")
