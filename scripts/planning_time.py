"""How long a tick that plans takes, for several controllers in turns."""

import time
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from diffpolicy.config import EnvConfig
from diffpolicy.policy import DiffusionPolicy
from diffpolicy.rollout import Controller, make_vector_env, observation_by_key
from diffpolicy.safety.readings import Readings

WARM_UP = 2  # starts that are not counted
Key = TypeVar("Key")


def planning_times_ms(
    policy: DiffusionPolicy,
    controllers: Mapping[Key, Controller],
    env_config: EnvConfig,
    batch: int,
    seed: int,
    starts: Iterable[int],
) -> dict[Key, npt.NDArray[np.float64]]:
    """Of the first tick of episodes of `batch` robots, by the clock and of the processor: [starts - WARM_UP, 2].

    Args:
        seed: of the first robot; all robots of all starts have their own.
        starts: 0, 1, ... to their number, WARM_UP included.
    """
    times: dict[Key, list[tuple[float, float]]] = {key: [] for key in controllers}
    env = make_vector_env(env_config, batch)
    try:
        for start in starts:
            seeds = [seed + batch * start + robot for robot in range(batch)]
            observation, info = env.reset(seed=seeds, options=env_config.reset_options)  # pyright: ignore[reportArgumentType]
            readings = Readings()
            readings.update(info, np.ones(batch, dtype=bool))
            seen = observation_by_key(observation, policy)
            for key, controller in controllers.items():
                controller.reset(seeds)
                times[key].append(_tick_ms(controller, seen, readings))
    finally:
        env.close()
    return {key: np.array(taken[WARM_UP:]) for key, taken in times.items()}


def _tick_ms(controller: Controller, observation: Any, readings: Readings) -> tuple[float, float]:
    """By the clock, and of the processor, all threads together."""
    state, obstacles = (readings.plant_state, readings.obstacles) if controller.safety else (None, None)
    began, began_work = time.perf_counter(), time.process_time()
    controller.select_action(observation, state, obstacles)
    return 1e3 * (time.perf_counter() - began), 1e3 * (time.process_time() - began_work)
