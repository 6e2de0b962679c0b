"""A constraint's constants, cached for each device and dtype."""

import torch
from torch import Tensor


class Constant:
    """A tensor of any shape that is copied to each device and dtype only once.

    Without the cache, every reverse step would copy it from the CPU to the GPU. The host would wait for the copy, and
    the loop could not be captured.
    """

    def __init__(self, values: Tensor) -> None:
        self._values = values
        self._copies: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def like(self, other: Tensor) -> Tensor:
        """The values on the device and with the dtype of `other`."""
        kind = other.device, other.dtype
        if kind not in self._copies:
            with torch.inference_mode(False):  # an inference tensor is unusable outside inference mode
                self._copies[kind] = self._values.to(other)
        return self._copies[kind]
