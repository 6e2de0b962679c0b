"""The specification of an observation: its kind, and its shape at one time step."""

from dataclasses import dataclass
from typing import Annotated

import torch

from diffpolicy.system.pixels import CHANNELS, COLORS, VALUES, PixelFormat
from diffpolicy.system.schema import OneOf, Range, check_settings

KINDS = ("vector", "image")
LEAST_SIDE = 4  # px, so that the shape of an image tells where its channels are


@dataclass(frozen=True)
class ObservationSpec:
    """The kind and shape of one observation.

    Attributes:
        kind: "vector" (float32) or "image" (uint8).
        shape: shape of one time step: [features] or [height, width, 3], each 1 to 16,777,216 and an image's sides at
            least 4. It is the shape that the encoder receives, whatever `channels` says.
        channels, values: how env, robot and data set deliver an image; see `PixelFormat`. Wherever it is delivered,
            uint8 [height, width, 3], which is what the encoder receives, is taken as well.

    Raises:
        ValueError: the kind is unknown, or the shape does not match the kind.
    """

    kind: Annotated[str, OneOf(*KINDS)]
    shape: tuple[Annotated[int, Range(1, 2**24)], ...]
    channels: Annotated[str, OneOf(*CHANNELS)] = "last"
    values: Annotated[str, OneOf(*VALUES)] = "bytes"

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        check_settings(self, "observation")
        expected = {"vector": "[features]", "image": "[height, width, channels]"}[self.kind]
        if len(self.shape) != expected.count(",") + 1:
            raise ValueError(f"observation: {self.kind} of shape {list(self.shape)}, expected {expected}")
        if self.kind == "vector" and self.pixels != PixelFormat():
            raise ValueError("observation: a vector has no channels and values; they are for images")
        if self.kind == "image":
            self._check_image()

    def _check_image(self) -> None:
        height, width, colors = self.shape
        if colors != COLORS:
            first = "; channels: first delivers [3, height, width], but the shape is [height, width, 3]"
            cure = first if height == COLORS else "; repeat a grey image three times, drop depth or alpha"
            raise ValueError(f"observation: image of {colors} channels, shape {list(self.shape)}, expected 3{cure}")
        if min(height, width) < LEAST_SIDE:
            raise ValueError(f"observation: image of {height} x {width}, expected at least {LEAST_SIDE} x {LEAST_SIDE}")

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which the encoder receives it."""
        return torch.float32 if self.kind == "vector" else torch.uint8

    @property
    def pixels(self) -> PixelFormat:
        """How an image is delivered."""
        return PixelFormat(self.channels, self.values)

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
