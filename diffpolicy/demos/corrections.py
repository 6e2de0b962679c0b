"""Corrections: the expert goes on from states in which a policy failed (DAgger, Ross et al. 2011).

A policy that is right on the demonstrations still drifts into states that they never show. There the expert can say
what it would do, because it is a function of the state.
"""

import hashlib
import importlib
import json
from dataclasses import asdict
from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np
import torch

from diffpolicy.control.controller import PolicyController
from diffpolicy.evaluation.evaluate import load_for_evaluation
from diffpolicy.evaluation.outcome import step_limit
from diffpolicy.evaluation.rollout import make_vector_env, rollout
from diffpolicy.system.tensor_file import digest

TRIES = 50  # most episodes of the policy for one attempt
ENV_SEEDS = 2**31, 2**32  # evaluations and demonstrations start from lower ones


class Corrections:
    """An expert, with the names of an expert's module, whose episodes begin where the policy of a checkpoint failed.

    Of an episode that the policy does not solve, one state is chosen, all alike likely. Only what the expert does from
    there is recorded.

    Args:
        expert: a module with `ENV` and `correct(state, settings, seed)`.
        checkpoint: of a policy for that env, with the sampler and number of steps that it prefers.

    Raises:
        FileNotFoundError: there is no checkpoint of that name.
        ValueError: the policy is for another env, or the expert cannot begin in any state.
    """

    def __init__(self, expert: ModuleType, checkpoint: str) -> None:
        if not hasattr(expert, "correct"):
            raise ValueError(f"mode: {expert.__name__} cannot begin in any state; corrections are made for task=pusht")
        policy, env = load_for_evaluation(checkpoint, None, None, torch.device("cpu"))
        if env.id != expert.ENV:
            raise ValueError(f"checkpoint: {checkpoint} acts in {env.id}; expected a policy for {expert.ENV}")
        self.VERSION, self.SPECS, self.Settings = expert.VERSION, expert.SPECS, expert.Settings
        acts = [digest(policy.acting_state()), asdict(policy.config.window), asdict(env)]
        self.policy = hashlib.sha256(json.dumps(acts, sort_keys=True).encode()).hexdigest()
        self._expert, self._checkpoint = expert.__name__, checkpoint

    def demonstrate(self, seed: int, settings: Any) -> Any:
        """The episode of a seed; None if the policy solved all that it tried, or the expert fails."""
        generator = np.random.default_rng([seed, 2])
        for _ in range(TRIES):
            states = _Policy.of(self._checkpoint).failure(int(generator.integers(*ENV_SEEDS)))
            if states is not None:
                state = states[generator.integers(len(states))]
                return importlib.import_module(self._expert).correct(state, settings, seed)
        return None


class _Policy:
    """A policy in its env, in this process; with one thread, since the number of threads changes the last bits."""

    def __init__(self, checkpoint: str) -> None:
        policy, env = load_for_evaluation(checkpoint, None, None, torch.device("cpu"))
        self._controller = PolicyController(policy, "auto", inference_batch=1)
        self._env, self._options = make_vector_env(env, 1), env.reset_options
        self._limit = step_limit(env, self._env)

    @staticmethod
    @lru_cache(maxsize=1)
    def of(checkpoint: str) -> "_Policy":
        return _Policy(checkpoint)

    def failure(self, seed: int) -> list[np.ndarray] | None:
        """The states of an episode, each after an action; None if the policy solves it."""
        states: list[np.ndarray] = []
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            (episode,) = rollout(
                self._controller,
                self._env,
                [seed],
                self._options,
                on_tick=lambda episode, seen, info, *_: states.append(np.array(info["state"][0])),
                max_episode_steps=self._limit,
            )
        finally:
            torch.set_num_threads(threads)
        return None if episode.success else states[: episode.length]
