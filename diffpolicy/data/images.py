"""The images of a data set: checked, as uint8 [rows, height, width, 3], and surveyed for a camera that saw nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffpolicy.data.source import DataSource
from diffpolicy.system.pixels import COLORS, PixelFormat, converted

BLOCK_BYTES = 2**26  # read at a time, as they are stored
DARK = 8  # a frame without a brighter value is black: a covered camera still has noise


@dataclass(frozen=True)
class Frames:
    """What the frames of an observation show.

    Attributes:
        count: how many there are.
        black: rows of the frames without any light.
        plain: rows of the other frames that have one colour only.
        are_equal: whether all frames are the same picture.
    """

    count: int
    black: tuple[int, ...]
    plain: tuple[int, ...]
    are_equal: bool

    @classmethod
    def chained(cls, parts: Sequence[Frames]) -> Frames:
        """Of several data sets, one after another; `are_equal` then says that none shows more than one picture."""
        starts = np.cumsum([0, *(part.count for part in parts)])
        rows = {
            name: tuple(
                int(start) + row for start, part in zip(starts, parts, strict=False) for row in getattr(part, name)
            )
            for name in ("black", "plain")
        }
        return cls(int(starts[-1]), rows["black"], rows["plain"], all(part.are_equal for part in parts))


class FrameSurvey:
    """Looks at consecutive blocks of frames."""

    def __init__(self) -> None:
        self._count, self._black, self._plain = 0, list[int](), list[int]()
        self._first: Tensor | None = None
        self._are_equal = True

    def add(self, frames: Tensor) -> None:
        """Look at further frames, uint8 [n, height, width, channels]."""
        if self._first is None:
            self._first = frames[0].clone()
        self._are_equal = self._are_equal and bool((frames == self._first).all())
        is_black = frames.flatten(1).amax(1) <= DARK
        is_plain = (frames == frames[:, :1, :1]).flatten(1).all(1) & ~is_black
        for found, rows in ((is_black, self._black), (is_plain, self._plain)):
            rows += (self._count + found.nonzero().squeeze(1)).tolist()
        self._count += len(frames)

    def result(self) -> Frames:
        """What they show."""
        return Frames(self._count, tuple(self._black), tuple(self._plain), self._are_equal)


def image_key(source: DataSource, name: str, parts: Sequence[str], pixels: PixelFormat) -> str:
    """The array that holds the images of the observation `name`.

    Raises:
        ValueError: it is not one array of rows [height, width, 3], or [3, height, width] where `pixels` says so.
    """
    where = f"{source.location}: image {name!r}"
    if isinstance(parts, str) or len(parts) != 1:
        raise ValueError(f"{where}: is {parts!r}, expected one array, such as [img]")
    key = str(parts[0]).strip()
    if key not in source.specs:
        raise ValueError(f"{where}: no array {key!r}; the data set has {source.keys}")
    shape = tuple(source.specs[key][0])
    if len(shape) != 3:
        raise ValueError(
            f"{where}: array {key!r} has rows of shape {list(shape)}, expected [height, width, 3]; leave {name} out of "
            "data.images if it is a vector"
        )
    if pixels.held(shape)[2] != COLORS:
        other = "first" if pixels.channels == "last" else "last"
        has_other = PixelFormat(channels=other).held(shape)[2] == COLORS
        cure = f"; try 'data.images={{{name}: {{channels: {other}}}}}'" if has_other else "; only RGB is supported"
        expected = list(pixels.delivered(("height", "width", 3)))  # type: ignore[arg-type]
        raise ValueError(
            f"{where}: array {key!r} has rows of shape {list(shape)}, expected [{', '.join(map(str, expected))}]{cure}"
        )
    return key


def read_images(source: DataSource, name: str, key: str, pixels: PixelFormat) -> tuple[Tensor, Frames]:
    """All images, uint8 [n_steps, height, width, 3], read in blocks so that little more than these is in memory.

    Raises:
        ValueError: they are damaged, or have other values than `pixels` says.
    """
    shape = pixels.held(tuple(source.specs[key][0]))
    images, survey = torch.empty(source.n_steps, *shape, dtype=torch.uint8), FrameSurvey()
    size = block_rows(source, key)
    for start in range(0, source.n_steps, size):
        rows = np.arange(start, min(start + size, source.n_steps))
        block = as_images(source, name, key, pixels, source.rows(key, start, start + len(rows)), rows)
        images[start : start + len(rows)] = block
        survey.add(block)
    return images, survey.result()


def block_rows(source: DataSource, key: str) -> int:
    """How many rows of an array to read at a time."""
    shape, dtype = source.specs[key]
    return max(1, BLOCK_BYTES // (int(np.prod(shape)) * np.dtype(dtype).itemsize))


def as_images(
    source: DataSource, name: str, key: str, pixels: PixelFormat, values: np.ndarray, rows: np.ndarray
) -> Tensor:
    """The stored `rows` of an array as images; raises ValueError as `read_images`."""
    if values.dtype.kind == "u" and values.dtype != np.uint8:
        values = values.astype(np.int64)  # torch computes little with other unsigned types
    images, reasons = converted(torch.from_numpy(np.ascontiguousarray(values)), pixels)
    for index, why in reasons.items():
        row = int(rows[index])
        episode = int(np.searchsorted(source.episode_ends, row, side="right"))
        step = row - (int(source.episode_ends[episode - 1]) if episode else 0)
        cure = ""
        for other in ("unit", "bytes"):
            if f"values: {other} takes" in why:
                cure = f"; if all are like this, 'data.images={{{name}: {{values: {other}}}}}' reads them"
        raise ValueError(f"{source.location}: array {key!r} {why}, in episode {episode} at step {step}{cure}")
    return images
