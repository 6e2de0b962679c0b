"""The rules by which an episode succeeds and ends, whatever env it runs in."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium.vector import SyncVectorEnv

from diffpolicy.evaluation.settings import EnvConfig

SUCCESS_KEYS = ("is_success", "success")  # of an env's info; the first that it reports counts
STEP_LIMIT = 10_000  # for an env that has no limit of its own


def reported_success(info: Mapping[str, Any], num_envs: int) -> npt.NDArray[np.bool_] | None:
    """Whether each env reports a success at this step, [num_envs]; None if none of them has a key for it.

    A success is a value above 0 or True; NaN is none.
    """
    for key in SUCCESS_KEYS:
        if key in info:
            values = np.array([value if value is not None else False for value in info[key]], dtype=np.float64)
            return values.reshape(num_envs, -1).max(1) > 0
    return None


def step_limit(config: EnvConfig, env: SyncVectorEnv) -> int | None:
    """The number of steps after which an episode is ended, or None where the env's own limit does that."""
    spec = env.envs[0].spec
    has_own = spec is not None and spec.max_episode_steps is not None
    return config.max_episode_steps or (None if has_own else STEP_LIMIT)
