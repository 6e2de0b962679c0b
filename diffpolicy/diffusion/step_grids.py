"""Steps of a deterministic sampler that were optimised once for a checkpoint, which stores them.

The best levels for few steps depend on the network. Watson et al. 2021 search them with a bound that is a sum over
steps; here, what counts is how far the samples are from those of many steps. The search is by coordinates, as in Sabour
et al. 2024: one level at a time, between its neighbours, until none can be moved to advantage.
"""

import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from diffpolicy.diffusion.schedule import Levels, Schedule, check_steps
from diffpolicy.system.schema import read

CANDIDATES = 15  # of a level, evenly spaced between its neighbours
MOST_SWEEPS = 8
COMMAND = "python scripts/optimize_steps.py checkpoint=FOLDER steps={steps} output=FOLDER"

Error = Callable[[Sequence[int]], float]
"""Indices of trained levels, falling -> the error of sampling with them."""


def optimized(trained: int, steps: int, error: Error) -> list[int]:
    """Indices of trained levels, falling from the last one, with an error no larger than that of trailing steps.

    Raises:
        ValueError: there are fewer than `steps` levels.
    """
    check_steps(steps, trained)
    grid = [round(trained * (1.0 - step / steps)) - 1 for step in range(steps)]
    known: dict[tuple[int, ...], float] = {}

    def of(indices: Sequence[int]) -> float:
        key = tuple(indices)
        if key not in known:
            known[key] = error(indices)
        return known[key]

    for _ in range(MOST_SWEEPS):
        before = list(grid)
        for place in range(1, steps):
            above, below = grid[place - 1] - 1, grid[place + 1] + 1 if place + 1 < steps else 0
            even = np.linspace(below, above, min(CANDIDATES, above - below + 1)).round().astype(int).tolist()
            near = [index for index in range(grid[place] - 2, grid[place] + 3) if below <= index <= above]
            moved = [[*grid[:place], index, *grid[place + 1 :]] for index in sorted({*even, *near})]
            grid = min([grid, *moved], key=of)
        if grid == before:
            break
    return grid


def with_grid(grids: Mapping[str, Any] | None, schedule: Schedule, indices: Sequence[int]) -> dict[str, Any]:
    """What a checkpoint stores, with one more grid; grids of another schedule are dropped."""
    same = grids is not None and grids.get("schedule") == digest(schedule)
    levels = dict(grids["levels"]) if same and grids is not None else {}
    return {"schedule": digest(schedule), "levels": {**levels, str(len(indices)): list(indices)}}


def stored(schedule: Schedule, steps: int, grids: Mapping[str, Any] | None) -> Levels:
    """The levels of the stored grid of `steps` steps.

    Raises:
        ValueError: there is none, it is for another schedule, or it is damaged.
    """
    found, where = grids or {}, "sampler: spacing stored"
    mend = f"store one with {COMMAND.format(steps=steps)}"
    levels = read(dict[str, list[int]], found.get("levels", {}), where)
    if str(steps) not in levels:
        others = f"grids of {', '.join(sorted(levels, key=int))} steps" if levels else "no grid"
        raise ValueError(f"{where}: the checkpoint stores {others}, expected one of {steps}; {mend}")
    if found.get("schedule") != digest(schedule):
        raise ValueError(f"{where}: the grid is for another schedule than the policy's; {mend}")
    grid = levels[str(steps)]
    falls = all(later < earlier for earlier, later in itertools.pairwise(grid))
    if len(grid) != steps or grid[0] != len(schedule) - 1 or grid[-1] < 0 or not falls:
        raise ValueError(f"{where}: the grid is {grid}, expected {steps} levels that fall from {len(schedule) - 1}")
    return schedule.levels[np.array(grid, dtype=np.intp)]


def digest(schedule: Schedule) -> str:
    """SHA-256 of the schedule's levels, to 6 digits."""
    text = ",".join(f"{value:.6e}" for values in (schedule.levels.alpha, schedule.levels.sigma) for value in values)
    return hashlib.sha256(text.encode()).hexdigest()
