"""How long a plan takes on this machine, to be declared as `Assumptions.latency_s`."""

import time
from collections.abc import Mapping

import numpy.typing as npt

from diffpolicy.control.controller import PolicyController
from diffpolicy.safety.surroundings import Surroundings


def measure_latency(
    controller: PolicyController,
    observation: Mapping[str, npt.ArrayLike],
    surroundings: Surroundings | None = None,
    plans: int = 20,
) -> float:
    """The most seconds that any of `plans` ticks took in which a plan is made, all candidates drawn.

    Call it before the first episode, with the machine as busy as it will be, and declare more than it returns: later
    plans may take longer. A plan that takes longer than declared is reported as late, and its robot holds. Ends the
    episodes of the controller; call `reset` afterwards.

    Args:
        observation, surroundings: as for `select_action`, like those that will be met, with as many obstacles.

    Raises:
        ValueError: `plans` is below 1, or as for `select_action`.
    """
    if plans < 1:
        raise ValueError(f"latency: plans {plans} must be at least 1")
    batch = len(next(iter(observation.values())))  # pyright: ignore[reportArgumentType]: arrays
    taken: list[float] = []
    controller.draws_all = True
    try:
        for seed in range(1 + plans):  # the first one warms up
            controller.reset([seed] * batch)
            began = time.perf_counter()
            controller.select_action(observation, surroundings)
            taken.append(time.perf_counter() - began)
    finally:
        controller.draws_all = False
        controller.reset([0] * batch)
    return max(taken[1:])
