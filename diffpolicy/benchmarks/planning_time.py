"""Measures how long the planning ticks of several controllers take, in turns."""

import time
from collections.abc import Iterable, Mapping
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from diffpolicy.control.protocol import Controller
from diffpolicy.control.wrapper import ControllerWrapper
from diffpolicy.evaluation.rollout import make_vector_env, rollout
from diffpolicy.evaluation.settings import EnvConfig
from diffpolicy.safety.surroundings import Surroundings

WARM_UP = 1  # uncounted rounds
Key = TypeVar("Key")


def planning_times_ms(
    controllers: Mapping[Key, Controller], env_config: EnvConfig, batch: int, seed: int, rounds: Iterable[int]
) -> dict[Key, npt.NDArray[np.float64]]:
    """Times [ticks, 2] of the planning ticks until the first robot finishes its episode: wall clock and processor.

    In each round, every controller drives `batch` robots through one episode each, the same for all controllers. The
    controller that starts changes from round to round.

    Args:
        seed: the seed of the first robot. All robots of all rounds have different ones.
        rounds: 0, 1, ... up to their number, including WARM_UP.
    """
    timed = {key: _Timed(controller) for key, controller in controllers.items()}
    keys = list(timed)
    env = make_vector_env(env_config, batch)
    try:
        for number in rounds:
            seeds = range(seed + batch * number, seed + batch * (number + 1))
            first = number % len(keys)
            for key in keys[first:] + keys[:first]:
                timed[key].begin()
                rollout(
                    timed[key],
                    env,
                    seeds,
                    env_config.reset_options,
                    on_tick=timed[key].keep if number >= WARM_UP else None,
                )
    finally:
        env.close()
    return {key: np.array(one.times_ms) for key, one in timed.items()}


class _Timed(ControllerWrapper):
    """A controller that measures how long its planning ticks take."""

    def __init__(self, controller: Controller) -> None:
        super().__init__(controller)
        self._tick = 0
        self._taken = (0.0, 0.0)
        self.times_ms: list[tuple[float, float]] = []  # wall clock, and processor time of all threads

    def begin(self) -> None:
        """The next tick is the first of an episode."""
        self._tick = 0

    def keep(self, episode: npt.NDArray[np.intp], *_: object) -> None:
        """The `on_tick` of `rollout`: counts a tick if it planned and no robot was idle."""
        is_planned = self._tick % self.policy.config.window.n_action_steps == 0
        if is_planned and (episode >= 0).all():
            self.times_ms.append(self._taken)
        self._tick += 1

    def select_action(
        self, observation: Mapping[str, npt.ArrayLike], surroundings: Surroundings | None = None
    ) -> npt.NDArray[np.float32]:
        began, began_work = time.perf_counter(), time.process_time()
        action = super().select_action(observation, surroundings)
        self._taken = 1e3 * (time.perf_counter() - began), 1e3 * (time.process_time() - began_work)
        return action
