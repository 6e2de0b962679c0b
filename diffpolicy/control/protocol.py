"""The controller protocol: a policy together with the state of its episodes."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from diffpolicy.policy.protocol import Policy
from diffpolicy.safety.report import PlanReport
from diffpolicy.safety.settings import Safety
from diffpolicy.safety.surroundings import Surroundings


class Controller(Protocol):
    """What a rollout needs from a controller: `PolicyController`, or a wrapper around one."""

    @property
    def policy(self) -> Policy: ...

    @property
    def safety(self) -> Safety | None:
        """What every action must meet; None without constraints."""
        ...

    @property
    def last_plan(self) -> PlanReport | None:
        """How the actions of the latest tick were decided; None without safety."""
        ...

    def reset(self, seeds: Sequence[int], mask: npt.NDArray[np.bool_] | None = None) -> None:
        """Start new episodes for the robots in `mask` [batch], or for all. `seeds` has one noise seed per robot."""
        ...

    def select_action(
        self, observation: Mapping[str, npt.ArrayLike], surroundings: Surroundings | None = None
    ) -> npt.NDArray[np.float32]:
        """The action of this tick [batch, action], in physical units."""
        ...
