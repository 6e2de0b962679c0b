"""Rollouts: run a controller in a gymnasium vector env and get one result per episode.

An episode depends only on its seed: the seed determines the env and the noise, and the batch size of the policy is
fixed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from diffpolicy.control.protocol import Controller
from diffpolicy.evaluation.readings import Readings
from diffpolicy.evaluation.settings import EnvConfig
from diffpolicy.policy.observations import checked_observation
from diffpolicy.policy.protocol import Policy
from diffpolicy.safety.layer import PlanReport
from diffpolicy.safety.surroundings import Surroundings

OnTick = Callable[
    [npt.NDArray[np.intp], Surroundings, Mapping[str, Any], npt.NDArray[np.float32], PlanReport | None], None
]
"""Called with (episode of every env or -1, surroundings before and info after the step, actions, their report)."""

OnStep = Callable[[VectorEnv, npt.NDArray[np.intp], npt.NDArray[np.float64]], None]
"""Called with (env, episode of every env or -1, its best score so far) before every action and after the last."""


@dataclass(frozen=True)
class Episode:
    """The result of one episode: `score` is its largest reward, `length` its number of actions."""

    seed: int
    score: float
    success: bool
    length: int


def make_vector_env(config: EnvConfig, num_envs: int, render_mode: str | None = None) -> VectorEnv:
    """`num_envs` copies of the task's env, without autoreset."""
    kwargs = {**config.kwargs, **({"render_mode": render_mode} if render_mode else {})}
    try:
        return SyncVectorEnv(
            [lambda: gymnasium.make(config.id, **kwargs)] * num_envs, autoreset_mode=AutoresetMode.DISABLED
        )
    except (gymnasium.error.Error, ModuleNotFoundError, TypeError, ValueError) as error:
        raise ValueError(f"env: {config.id} with {kwargs} cannot be made: {error}") from error


def check_env(config: EnvConfig, policy: Policy) -> None:
    """Raise ValueError unless the env can be made and reset, and matches the policy's observations and actions."""
    env = make_vector_env(config, 1)
    try:
        observation, _ = env.reset(seed=0, options=dict(config.reset_options))
    finally:
        env.close()
    checked_observation(observation_by_key(observation, policy), policy.config.observations, (1,))
    space, dim = env.single_action_space, policy.config.action_dim
    if not isinstance(space, gymnasium.spaces.Box) or space.shape != (dim,):
        raise ValueError(f"env: {config.id} takes actions {space}, but the demonstrations have {dim} numbers each")


def rollout(
    controller: Controller,
    env: VectorEnv,
    seeds: Sequence[int],
    reset_options: Mapping[str, Any],
    on_step: OnStep | None = None,
    on_tick: OnTick | None = None,
) -> list[Episode]:
    """Run one episode per seed and return the results in the order of the seeds.

    A controller with safety is told what the env's info reports about motion and obstacles: see `Readings`.

    An env whose episode has ended waits for the end of the controller's chunk before it takes the next seed. All envs
    then stay in step and are planned for in one call.
    """
    slots = _Slots(env.num_envs, seeds)
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
            on_step(env, slots.episode, slots.score)
        action = _action(controller, observation, readings)
        observation, reward, terminated, truncated, info = env.step(action)
        if on_tick:
            on_tick(slots.episode, readings.surroundings, info, action, controller.last_plan)
        readings.update(info, np.ones(env.num_envs, dtype=bool))
        done = terminated | truncated
        slots.record(reward, done, np.asarray(info.get("is_success", terminated), dtype=bool))
        if on_step and (done & slots.is_active).any():
            on_step(env, np.where(done, slots.episode, -1), slots.score)
        if done.any():  # an ended env must be reset before it can step; it is not recorded until its refill
            observation, info = _reset(env, slots.seeds(), reset_options, done)
            readings.update(info, done)
            slots.release(done)
        tick += 1
    return slots.results


class _Slots:
    """The episode that each env runs, and its result so far."""

    def __init__(self, num_envs: int, seeds: Sequence[int]) -> None:
        self._seeds = seeds
        self._next = 0
        self._slot_seeds = [int(seeds[i % len(seeds)]) for i in range(num_envs)]
        self.episode = np.full(num_envs, -1)
        self.score = np.zeros(num_envs)
        self.length = np.zeros(num_envs, dtype=int)
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
        self.length[idle] = 0
        fresh = np.zeros(len(self.episode), dtype=bool)
        fresh[idle] = True
        return fresh

    def record(
        self, reward: npt.NDArray[np.float64], done: npt.NDArray[np.bool_], success: npt.NDArray[np.bool_]
    ) -> None:
        """Take in the results of a step, and record the episodes that it ended.

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
        self.length += 1
        for slot in np.flatnonzero(done & self.is_active).tolist():
            self._results[int(self.episode[slot])] = Episode(
                self._slot_seeds[slot], float(self.score[slot]), bool(success[slot]), int(self.length[slot])
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
