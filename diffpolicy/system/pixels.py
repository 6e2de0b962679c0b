"""Images as they are delivered and as the library holds them: uint8, channels last."""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from diffpolicy.system.schema import OneOf

CHANNELS = ("last", "first")
VALUES = ("bytes", "unit")
COLORS = 3


@dataclass(frozen=True)
class PixelFormat:
    """How an env, a robot or a data set delivers images. Nothing is guessed from the values.

    Attributes:
        channels: "last", [height, width, 3], or "first", [3, height, width].
        values: "bytes", whole numbers from 0 to 255 of any type, or "unit", floats from 0 to 1, which are rounded to
            the nearest of 256 levels.
    """

    channels: Annotated[str, OneOf(*CHANNELS)] = "last"
    values: Annotated[str, OneOf(*VALUES)] = "bytes"

    def delivered(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape in which frames [height, width, channels] are delivered."""
        return shape if self.channels == "last" else (shape[2], shape[0], shape[1])

    def held(self, delivered: tuple[int, ...]) -> tuple[int, ...]:
        """The inverse of `delivered`."""
        return delivered if self.channels == "last" else (*delivered[1:], delivered[0])


def converted(frames: Tensor, pixels: PixelFormat) -> tuple[Tensor, dict[int, str]]:
    """Convert delivered frames [n, ...] to uint8 [n, height, width, channels].

    Frames that cannot be converted come out black, with the reason: {index: why}.
    """
    if pixels.channels == "first":
        frames = frames.movedim(1, -1)
    if frames.dtype == torch.uint8 and pixels.values == "bytes":
        return frames.contiguous(), {}
    reasons = _reasons(frames, pixels.values)
    if reasons:
        frames = frames.clone()
        frames[list(reasons)] = 0
    levels = (frames * 255).round() if pixels.values == "unit" else frames
    return levels.to(torch.uint8).contiguous(), reasons


def _reasons(frames: Tensor, values: str) -> dict[int, str]:
    kind = str(frames.dtype).removeprefix("torch.")
    if frames.dtype == torch.bool or frames.is_complex():
        return dict.fromkeys(range(len(frames)), f"is {kind}, expected numbers")
    if values == "unit" and not frames.is_floating_point():
        return dict.fromkeys(range(len(frames)), f"is {kind}, expected floats from 0 to 1, as values: unit says")
    low, high = frames.flatten(1).amin(1), frames.flatten(1).amax(1)  # NaN if a value is
    most = 1 if values == "unit" else 255
    expected = "floats from 0 to 1" if values == "unit" else "whole numbers from 0 to 255"
    doubtful = ~((low >= 0) & (high <= most))
    if values == "bytes" and frames.is_floating_point():
        doubtful |= ((high > 0) & (high <= 1)) | (frames != frames.round()).flatten(1).any(1)
    return {
        index: f"{_found(float(low[index]), float(high[index]), values)}, expected {expected}"
        for index in doubtful.nonzero().squeeze(1).tolist()
    }


def _found(low: float, high: float, values: str) -> str:
    if low != low or abs(low) == float("inf") or abs(high) == float("inf"):
        return "has NaN or infinite values"
    if values == "bytes" and low >= 0 and 0 < high <= 1:
        return f"has floats from {low:g} to {high:g} (values: unit takes floats from 0 to 1)"
    if values == "unit" and low >= 0 and 1 < high <= 255:
        return f"has values from {low:g} to {high:g} (values: bytes takes whole numbers from 0 to 255)"
    if values == "bytes" and low >= 0 and high <= 255:
        return f"has fractions, from {low:g} to {high:g}"
    return f"has values from {low:g} to {high:g}"
