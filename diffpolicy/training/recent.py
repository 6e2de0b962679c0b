"""Loss and gradient norm of the steps since the last row that was logged; they stay on the device until asked for."""

import math

import torch
from torch import Tensor

from diffpolicy.system.distributed import Ranks


class RecentSteps:
    """Of this process; what is asked for is of the whole batch."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._steps: list[Tensor] = []  # [2] each

    def add(self, loss: Tensor, grad_norm: Tensor) -> None:
        """One more step."""
        self._steps.append(torch.stack([loss, grad_norm]))

    def clear(self) -> None:
        """They have been logged."""
        self._steps.clear()

    def restore(self, values: Tensor) -> None:
        """Go on from what `checked` gave."""
        self._steps = list(values)

    def checked(self) -> Tensor:
        """[steps, 2] loss and gradient norm; finite, so the weights are too and may be saved.

        Raises:
            FloatingPointError: they are not.
        """
        if not self._steps:
            return torch.empty(0, 2)
        recent = self._ranks.mean(torch.stack(self._steps))
        loss, grad_norm = recent.mean(dim=0).tolist()
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise FloatingPointError(
                f"loss {loss}, gradient norm {grad_norm}: begin anew with a lower trainer.learning_rate, or look for "
                "outliers in the data"
            )
        return recent
