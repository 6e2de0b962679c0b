"""Loss and gradient norm of the steps since the last logged row; they stay on the device until they are needed."""

import math

import torch
from torch import Tensor

from diffpolicy.system.distributed import Ranks


class RecentSteps:
    """Stores the values of this process; `checked` averages them over all processes."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._steps: list[Tensor] = []  # [2] each

    def add(self, loss: Tensor, grad_norm: Tensor) -> None:
        """Add the scalars of one step."""
        self._steps.append(torch.stack([loss, grad_norm]))

    def clear(self) -> None:
        """Forget all steps after they were logged."""
        self._steps.clear()

    def restore(self, values: Tensor) -> None:
        """Restore the steps [steps, 2] that `checked` returned before an interruption."""
        self._steps = list(values)

    def checked(self) -> Tensor:
        """Loss and gradient norm of all steps, [steps, 2]. They are finite, so the weights are finite and can be saved.

        Raises:
            FloatingPointError: a loss or a gradient norm is not finite.
        """
        if not self._steps:
            return torch.empty(0, 2)
        recent = self._ranks.mean(torch.stack(self._steps))
        loss, grad_norm = recent.mean(dim=0).tolist()
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise FloatingPointError(
                f"loss {loss}, gradient norm {grad_norm}: start again with a lower trainer.learning_rate, or look for "
                "outliers in the data"
            )
        return recent
