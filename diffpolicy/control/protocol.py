"""What acts: a policy with the state of its episodes around it."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from diffpolicy.policy.protocol import Policy
from diffpolicy.safety.layer import PlanReport
from diffpolicy.safety.settings import Safety
from diffpolicy.safety.surroundings import Surroundings


class Controller(Protocol):
    """What a rollout asks of a controller: `PolicyController`, or a wrapper around one."""

    @property
    def policy(self) -> Policy: ...

    @property
    def safety(self) -> Safety | None:
        """What every action has to meet; None where nothing is demanded."""
        ...

    @property
    def last_plan(self) -> PlanReport | None:
        """What stands behind the actions of the latest tick; None without safety."""
        ...

    def reset(self, seeds: Sequence[int], mask: npt.NDArray[np.bool_] | None = None) -> None:
        """Begin new episodes, of the robots in `mask` [batch] or of all; seeds are of the noise, one per robot."""
        ...

    def select_action(
        self, observation: Mapping[str, npt.ArrayLike], surroundings: Surroundings | None = None
    ) -> npt.NDArray[np.float32]:
        """The action of this tick [batch, action], physical units."""
        ...
