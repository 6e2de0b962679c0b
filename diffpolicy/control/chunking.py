"""Receding horizon: what each robot has seen, the chunk that it executes, and the noise for its next plan.

                            tick:  -1   0   1   2   3   4   5   6   7   8  ...
    n_obs_steps (2)                 o   o
    horizon (16)                    p   p   p   p   p   p   p   p   p   p  ...  the plan made at tick 0
    n_action_steps (8)                  a   a   a   a   a   a   a   a           the part that is executed
                                                                        |       the next plan is made at tick 8

Shape legend: B robots, Q of them in a call, n rows of a chunk.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from diffpolicy.policy.settings import PolicyConfig

SAMPLE_SEEDS = 1_000_003  # offset between the seeds of a robot's samples

Chunks = npt.NDArray[np.float32]
Robots = npt.NDArray[np.intp]
"""Indices of robots [Q]."""


class Chunking:
    """The chunks of a batch of robots, each in its own episode.

    Args:
        batch: B, the number of robots.
        config: the settings of the policy.
        samples: the number of noise streams per robot, one for each sample that may be drawn for a chunk.
    """

    def __init__(self, batch: int, config: PolicyConfig, samples: int) -> None:
        self._n = config.window.n_action_steps
        self._history = {
            key: torch.zeros(batch, config.window.n_obs_steps, *spec.shape, dtype=spec.dtype)
            for key, spec in config.observations.items()
        }
        self._generators = [[torch.Generator() for _ in range(samples)] for _ in range(batch)]
        self._chunks = np.zeros((batch, self._n, config.action_dim), dtype=np.float32)
        self._position = np.full(batch, self._n, dtype=np.intp)
        self._is_first = np.ones(batch, dtype=bool)
        present = config.window.n_obs_steps - 1
        self._sent = np.zeros((batch, present, config.action_dim), dtype=np.float32)
        self._has_sent = np.zeros(batch, dtype=bool)
        self._plans = np.zeros((batch, config.window.horizon - present, config.action_dim), dtype=np.float32)
        self._has_plan = np.zeros(batch, dtype=bool)

    def __len__(self) -> int:
        return len(self._position)

    def begin(self, seeds: Sequence[int], mask: npt.NDArray[np.bool_]) -> None:
        """Start new episodes for the robots of `mask` [B]. The seeds [B] of the others are ignored."""
        for robot in np.flatnonzero(mask).tolist():
            for sample, generator in enumerate(self._generators[robot]):
                generator.manual_seed(int(seeds[robot]) + SAMPLE_SEEDS * sample)
        self._is_first[mask] = True
        self._position[mask] = self._n
        self._has_sent[mask] = self._has_plan[mask] = False

    def remember(self, observation: Mapping[str, Tensor], is_seen: Tensor) -> None:
        """Take in the observation {key: [B, *shape]} of this tick. The first of an episode fills the whole history.

        Robots for which `is_seen` [B] is False count as seeing what they saw last.
        """
        first = torch.from_numpy(self._is_first) & is_seen
        for key, history in self._history.items():
            history[:, :-1] = history[:, 1:].clone()
            history[is_seen, -1] = observation[key][is_seen]
            history[first] = observation[key][first, None]
        self._is_first[is_seen.numpy()] = False

    def observation(self, robots: Tensor) -> dict[str, Tensor]:
        """What these robots have seen, {key: [Q, n_obs_steps, *shape]}."""
        return {key: history[robots] for key, history in self._history.items()}

    def generators(self, robots: Tensor, samples: Tensor) -> list[torch.Generator]:
        """The noise generators of sample `samples` [Q] of each of these robots."""
        pairs = zip(robots.tolist(), samples.tolist(), strict=True)
        return [self._generators[robot][sample] for robot, sample in pairs]

    @property
    def due(self) -> Robots:
        """The robots that have finished their chunk and need a new one."""
        return np.flatnonzero(self._position >= self._n)

    @property
    def underway(self) -> Robots:
        """The robots that are still executing a chunk."""
        return np.flatnonzero(self._position < self._n)

    def start(self, robots: Robots, chunks: Chunks, samples: Sequence[Chunks] = ()) -> None:
        """Give these robots new chunks [Q, n, action].

        Args:
            samples: plans from the present on, each [Q, rows, action]. A robot whose chunk is the beginning of one of
                them has that as its last plan; the others have none.
        """
        self._chunks[robots] = chunks
        self._position[robots] = 0
        self._has_plan[robots] = False
        for plans in samples:
            is_taken = (plans[:, : self._n] == chunks).all((1, 2)) & np.isfinite(plans).all((1, 2))
            self._plans[robots[is_taken]] = plans[is_taken]
            self._has_plan[robots[is_taken]] = True

    def have_plan(self, robots: Tensor) -> Tensor:
        """[Q], for which of these robots the last plan is known, and was followed to the end of its chunk."""
        return torch.from_numpy(self._has_plan[robots.numpy()])

    def shifted_plans(self, robots: Tensor) -> Tensor:
        """The last plans of these robots [Q, horizon, action] as seen from the end of their chunks.

        The past rows are what was sent, and the last row fills up the end.
        """
        rows = np.minimum(self._n + np.arange(self._plans.shape[1]), self._plans.shape[1] - 1)
        at = robots.numpy()  # NumPy takes a tensor of one element for a number
        return torch.from_numpy(np.concatenate([self._sent[at], self._plans[at][:, rows]], axis=1))

    def abandon(self, robots: Robots, actions: Chunks) -> None:
        """End the chunks of these robots with this tick, whose actions [Q, action] are to be these."""
        self._chunks[robots] = actions[:, None]
        self._position[robots] = self._n - 1
        self._has_plan[robots] = False

    def remaining(self, robots: Robots) -> Chunks:
        """The rest of these robots' chunks, filled up to [Q, n, action] with the last row."""
        rows = np.minimum(self._position[robots, None] + np.arange(self._n), self._n - 1)
        return self._chunks[robots[:, None], rows]

    def replace_remaining(self, robots: Robots, chunks: Chunks) -> None:
        """Replace the rest of these robots' chunks by [Q, n, action]. Rows beyond the end of a chunk are dropped."""
        for robot, chunk in zip(robots.tolist(), chunks, strict=True):
            rest, new = self._chunks[robot, self._position[robot] :], chunk[: self._n - self._position[robot]]
            self._has_plan[robot] &= np.array_equal(rest, new)
            rest[:] = new

    def next_actions(self) -> Chunks:
        """The actions of this tick [B, action]. Every chunk advances by one row."""
        actions = self._chunks[np.arange(len(self._chunks)), self._position]
        self._position += 1
        self._sent[~self._has_sent] = actions[~self._has_sent, None]
        self._sent = np.concatenate([self._sent, actions[:, None]], axis=1)[:, 1:]
        self._has_sent[:] = True
        return actions
