"""Base class of wrappers around a controller, like `gymnasium.Wrapper` for envs."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from diffpolicy.control.protocol import Controller
from diffpolicy.policy.protocol import Policy
from diffpolicy.safety.report import PlanReport
from diffpolicy.safety.settings import Safety
from diffpolicy.safety.surroundings import Surroundings


class ControllerWrapper:
    """Forwards everything to `controller`; a subclass overrides what it changes."""

    def __init__(self, controller: Controller) -> None:
        self.controller = controller

    @property
    def policy(self) -> Policy:
        return self.controller.policy

    @property
    def safety(self) -> Safety | None:
        return self.controller.safety

    @property
    def last_plan(self) -> PlanReport | None:
        return self.controller.last_plan

    def reset(self, seeds: Sequence[int], mask: npt.NDArray[np.bool_] | None = None) -> None:
        self.controller.reset(seeds, mask)

    def select_action(
        self, observation: Mapping[str, npt.ArrayLike], surroundings: Surroundings | None = None
    ) -> npt.NDArray[np.float32]:
        return self.controller.select_action(observation, surroundings)
