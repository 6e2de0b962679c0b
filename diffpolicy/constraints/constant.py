"""Numbers of a constraint, where they are needed."""

import torch
from torch import Tensor


class Constant:
    """`values`, of any shape; the copy for a device and a type is made once.

    From a CPU to a GPU it would otherwise be made at every reverse step: the host would wait for it, and the loop could
    not be captured.
    """

    def __init__(self, values: Tensor) -> None:
        self._values = values
        self._copies: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def like(self, other: Tensor) -> Tensor:
        """On the device and of the type of `other`."""
        kind = other.device, other.dtype
        if kind not in self._copies:
            with torch.inference_mode(False):  # a copy made in this mode could not serve outside it
                self._copies[kind] = self._values.to(other)
        return self._copies[kind]
