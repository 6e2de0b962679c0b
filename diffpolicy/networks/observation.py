"""The specification of an observation: its kind, and its shape at one time step."""

from dataclasses import dataclass
from typing import Annotated

import torch

from diffpolicy.system.schema import OneOf, Range, check_settings

KINDS = ("vector", "image")


@dataclass(frozen=True)
class ObservationSpec:
    """The kind and shape of one observation.

    Attributes:
        kind: "vector" (float32) or "image" (uint8).
        shape: shape of one time step: [features] or [height, width, channels], each 1 to 16,777,216.

    Raises:
        ValueError: the kind is unknown, or the shape does not match the kind.
    """

    kind: Annotated[str, OneOf(*KINDS)]
    shape: tuple[Annotated[int, Range(1, 2**24)], ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        check_settings(self, "observation")
        expected = {"vector": "[features]", "image": "[height, width, channels]"}[self.kind]
        if len(self.shape) != expected.count(",") + 1:
            raise ValueError(f"observation: {self.kind} of shape {list(self.shape)}, expected {expected}")

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which the encoder receives it."""
        return torch.float32 if self.kind == "vector" else torch.uint8

    @property
    def features(self) -> int:
        """The number of features of a vector.

        Raises:
            ValueError: it is an image.
        """
        if self.kind != "vector":
            raise ValueError(f"observation: {self.kind} {list(self.shape)} where a vector is needed")
        return self.shape[0]


def vector(features: int) -> ObservationSpec:
    """The spec of a vector with this many features."""
    return ObservationSpec("vector", (features,))
