"""Rollouts: run a controller in a gymnasium vector env and get one result per episode.

An episode depends only on its seed: the seed determines the env and the noise, and the batch size of the policy is
fixed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from tqdm import tqdm

from diffpolicy.control.protocol import Controller
from diffpolicy.evaluation.outcome import STEP_LIMIT, SUCCESS_KEYS, reported_success
from diffpolicy.evaluation.readings import Readings
from diffpolicy.evaluation.settings import EnvConfig
from diffpolicy.policy.protocol import Policy
from diffpolicy.safety.report import PlanReport
from diffpolicy.safety.surroundings import Surroundings

OnTick = Callable[
    [npt.NDArray[np.intp], Surroundings, Mapping[str, Any], npt.NDArray[np.float32], PlanReport | None], None
]
"""Called with (episode of every env or -1, surroundings before and info after the step, actions, their report)."""

OnStep = Callable[[VectorEnv, npt.NDArray[np.intp], npt.NDArray[np.float64], Any], None]
"""Called before every action and after the last: (env, episode of every env or -1, best score so far, observation)."""


@dataclass(frozen=True)
class Episode:
    """The result of one episode.

    Attributes:
        score: its largest reward.
        success: whether the env reported a success at any step.
        length: its number of actions.
    """

    seed: int
    score: float
    success: bool
    length: int


def make_vector_env(config: EnvConfig, num_envs: int, render_mode: str | None = None) -> SyncVectorEnv:
    """`num_envs` copies of the task's env, without autoreset."""
    kwargs = {**config.kwargs, **({"render_mode": render_mode} if render_mode else {})}
    try:
        return SyncVectorEnv(
            [lambda: gymnasium.make(config.id, **kwargs)] * num_envs, autoreset_mode=AutoresetMode.DISABLED
        )
    except (gymnasium.error.Error, ModuleNotFoundError, TypeError, ValueError) as error:
        raise ValueError(f"env: {config.id} with {kwargs} cannot be made: {error}") from error


def rollout(
    controller: Controller,
    env: VectorEnv,
    seeds: Sequence[int],
    reset_options: Mapping[str, Any],
    on_step: OnStep | None = None,
    on_tick: OnTick | None = None,
    max_episode_steps: int | None = None,
    progress: bool = False,
) -> list[Episode]:
    """Run one episode per seed and return the results in the order of the seeds.

    An episode is a success if the env's info has a true `is_success`, or `success`, at any of its steps. Without either
    key there are no successes, and a warning says so. An episode that does not end in `max_episode_steps` is ended.

    A controller with safety is told what the env's info reports about motion and obstacles: see `Readings`.

    An env whose episode has ended waits for the end of the controller's chunk before it takes the next seed. All envs
    then stay in step and are planned for in one call.
    """
    slots = _Slots(env.num_envs, seeds)
    shown = {"desc": "evaluation", "unit": "episode", "leave": False, "dynamic_ncols": True, "disable": not progress}
    with tqdm(total=len(seeds), **shown) as bar:
        for ended in _run(controller, env, slots, reset_options, on_step, on_tick, max_episode_steps):
            bar.update(ended)
    _warn(slots.results, slots.has_success_key, max_episode_steps)
    return slots.results


def _run(
    controller: Controller,
    env: VectorEnv,
    slots: _Slots,
    reset_options: Mapping[str, Any],
    on_step: OnStep | None,
    on_tick: OnTick | None,
    max_episode_steps: int | None,
) -> Iterator[int]:
    """Run until `slots` has all results; yields at each tick how many episodes it ended."""
    observation: Any = None
    readings = Readings()
    tick = 0
    while slots.any_left:
        if tick % controller.policy.config.window.n_action_steps == 0 and (fresh := slots.refill()).any():
            is_first = observation is None
            observation, info = _reset(env, slots.seeds(), reset_options, fresh | is_first)
            readings.begin(info, fresh | is_first)
            controller.reset(slots.seeds(), None if is_first else fresh)
        if on_step:
            on_step(env, slots.episode, slots.score, observation)
        action = _action(controller, observation, readings)
        observation, reward, terminated, truncated, info = env.step(action)
        if on_tick:
            on_tick(slots.episode, readings.surroundings, info, action, controller.last_plan)
        readings.update(info, np.ones(env.num_envs, dtype=bool))
        done = terminated | truncated
        if max_episode_steps is not None:
            done |= slots.length + 1 >= max_episode_steps
        slots.record(reward, done, reported_success(info, env.num_envs))
        yield int((done & slots.is_active).sum())
        if on_step and (done & slots.is_active).any():
            on_step(env, np.where(done, slots.episode, -1), slots.score, observation)
        if done.any():  # an ended env must be reset before it can step; it is not recorded until its refill
            observation, info = _reset(env, slots.seeds(), reset_options, done)
            readings.update(info, done)
            slots.release(done)
        tick += 1


def _warn(episodes: Sequence[Episode], has_success_key: bool, max_episode_steps: int | None) -> None:
    if not has_success_key:
        warnings.warn(
            f"env: its info has neither {' nor '.join(SUCCESS_KEYS)}, so no episode counts as a success", stacklevel=3
        )
    if max_episode_steps == STEP_LIMIT and (ended := sum(episode.length >= STEP_LIMIT for episode in episodes)):
        warnings.warn(
            f"env: {ended} episodes did not end by themselves and were ended after {STEP_LIMIT} steps, the default; "
            "env.max_episode_steps sets another limit",
            stacklevel=3,
        )


class _Slots:
    """The episode that each env runs, and its result so far."""

    def __init__(self, num_envs: int, seeds: Sequence[int]) -> None:
        self._seeds = seeds
        self._next = 0
        self._slot_seeds = [int(seeds[i % len(seeds)]) for i in range(num_envs)]
        self.episode = np.full(num_envs, -1)
        self.score = np.zeros(num_envs)
        self.success = np.zeros(num_envs, dtype=bool)
        self.length = np.zeros(num_envs, dtype=int)
        self.has_success_key = False
        self._results: dict[int, Episode] = {}

    @property
    def results(self) -> list[Episode]:
        """The results in the order of the seeds."""
        return [self._results[episode] for episode in sorted(self._results)]

    @property
    def is_active(self) -> npt.NDArray[np.bool_]:
        return self.episode >= 0

    @property
    def any_left(self) -> bool:
        return bool(self.is_active.any()) or self._next < len(self._seeds)

    def seeds(self) -> list[int]:
        return list(self._slot_seeds)

    def refill(self) -> npt.NDArray[np.bool_]:
        """Assign the next episodes to idle envs. Returns which envs start one."""
        idle = np.flatnonzero(~self.is_active)[: len(self._seeds) - self._next]
        for slot in idle:
            self.episode[slot] = self._next
            self._slot_seeds[slot] = int(self._seeds[self._next])
            self._next += 1
        self.score[idle] = -np.inf
        self.success[idle] = False
        self.length[idle] = 0
        fresh = np.zeros(len(self.episode), dtype=bool)
        fresh[idle] = True
        return fresh

    def record(
        self, reward: npt.NDArray[np.float64], done: npt.NDArray[np.bool_], success: npt.NDArray[np.bool_] | None
    ) -> None:
        """Take in the results of a step, and record the episodes that it ended. `success` is None if none is reported.

        Raises:
            ValueError: a reward is not finite.
        """
        if (wrong := self.is_active & ~np.isfinite(reward)).any():
            slot = int(np.flatnonzero(wrong)[0])
            raise ValueError(
                f"env: the reward of step {self.length[slot] + 1} is {reward[slot]} in the episode with seed "
                f"{self._slot_seeds[slot]}, expected a finite number"
            )
        self.score = np.maximum(self.score, reward)
        if success is not None:
            self.has_success_key = True
            self.success |= success
        self.length += 1
        for slot in np.flatnonzero(done & self.is_active).tolist():
            self._results[int(self.episode[slot])] = Episode(
                self._slot_seeds[slot], float(self.score[slot]), bool(self.success[slot]), int(self.length[slot])
            )

    def release(self, done: npt.NDArray[np.bool_]) -> None:
        self.episode[done] = -1


def _action(controller: Controller, observation: Any, readings: Readings) -> npt.NDArray[np.float32]:
    seen = observation_by_key(observation, controller.policy)
    if controller.safety is None:
        return controller.select_action(seen)
    return controller.select_action(seen, readings.surroundings)


def _reset(
    env: VectorEnv, seeds: list[int], options: Mapping[str, Any], mask: npt.NDArray[np.bool_]
) -> tuple[Any, dict[str, Any]]:
    return env.reset(seed=seeds, options={**options, "reset_mask": mask})  # pyright: ignore[reportArgumentType]


def observation_by_key(observation: Any, policy: Policy) -> dict[str, npt.NDArray[Any]]:
    """Pick the policy's observations from the env's. An env that returns an array provides the policy's only one."""
    keys = list(policy.config.observations)
    if isinstance(observation, Mapping):
        missing = sorted(set(keys) - set(observation))
        if missing:
            raise ValueError(f"env: observation has no {', '.join(missing)}; it has {', '.join(sorted(observation))}")
        return {key: observation[key] for key in keys}
    if len(keys) != 1:
        raise ValueError(f"env: observation is one array, but the policy expects {', '.join(sorted(keys))}")
    return {keys[0]: observation}
