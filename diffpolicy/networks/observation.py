"""The specification of an observation: its kind, and its shape at one time step."""

from dataclasses import dataclass

import torch

KINDS = ("vector", "image")


@dataclass(frozen=True)
class ObservationSpec:
    """The kind and shape of one observation.

    Attributes:
        kind: "vector" (float32) or "image" (uint8).
        shape: shape of one time step: [features] or [height, width, channels].

    Raises:
        ValueError: the kind is unknown, or the shape does not match the kind.
    """

    kind: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"observation: kind {self.kind!r} is unknown, expected one of {', '.join(KINDS)}")
        object.__setattr__(self, "shape", tuple(self.shape))
        expected = {"vector": "[features]", "image": "[height, width, channels]"}[self.kind]
        if len(self.shape) != expected.count(",") + 1 or not all(isinstance(n, int) and n >= 1 for n in self.shape):
            raise ValueError(f"observation: {self.kind} of shape {list(self.shape)}, expected {expected}, at least 1")

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
