"""How long the ticks that plan take, for several controllers in turns."""

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

WARM_UP = 1  # rounds that are not counted
Key = TypeVar("Key")


def planning_times_ms(
    controllers: Mapping[Key, Controller], env_config: EnvConfig, batch: int, seed: int, rounds: Iterable[int]
) -> dict[Key, npt.NDArray[np.float64]]:
    """Of ticks that plan, until the first robot has come to the end of its episode: [ticks, 2], clock and processor.

    In a round every controller drives `batch` robots through an episode each, the same for all controllers; who
    begins changes from round to round.

    Args:
        seed: of the first robot; all robots of all rounds have their own.
        rounds: 0, 1, ... to their number, WARM_UP included.
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
    """A controller, and how long its ticks that plan took."""

    def __init__(self, controller: Controller) -> None:
        super().__init__(controller)
        self._tick = 0
        self._taken = (0.0, 0.0)
        self.times_ms: list[tuple[float, float]] = []  # by the clock, and of the processor, all threads together

    def begin(self) -> None:
        """The next tick is the first of an episode."""
        self._tick = 0

    def keep(self, episode: npt.NDArray[np.intp], *_: object) -> None:
        """Of `rollout` after every tick: counts it if it planned and no robot stands idle."""
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
