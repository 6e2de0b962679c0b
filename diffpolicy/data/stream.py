"""Observations that stay on disk: rows are read on demand, so the data need not fit in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from diffpolicy.data.images import Frames, FrameSurvey, as_images, block_rows
from diffpolicy.data.source import DataSource
from diffpolicy.data.survey import Column, survey
from diffpolicy.system.pixels import PixelFormat

BLOCK_ROWS = 16_384

Columns = tuple[str, int, int]
"""(array, first column, one past the last column) of an array flattened to [n_steps, columns]."""


class StreamedRows:
    """The rows of an observation, read from the data set on demand. It keeps the file of a .zip open.

    They have the same values as an observation that is held in memory: images, delivered as `pixels` says, as uint8;
    other arrays flattened and joined into float32 columns.
    """

    def __init__(
        self, buffer: DataSource, name: str, parts: Sequence[Columns], pixels: PixelFormat | None = None
    ) -> None:
        self._buffer, self._name, self._parts, self._pixels = buffer, name, parts, pixels

    @property
    def shape(self) -> tuple[int, ...]:
        """[n_steps, dim], or [n_steps, height, width, 3]."""
        if self._pixels is not None:
            return self._buffer.n_steps, *self._pixels.held(tuple(self._buffer.specs[self._parts[0][0]][0]))
        return self._buffer.n_steps, sum(stop - start for _, start, stop in self._parts)

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Read `rows` (int64): [*rows.shape, *row]. Each chunk is decoded once, however many of its rows are read.

        Raises:
            ValueError: a chunk is missing or damaged, or a value is NaN or inf.
        """
        unique, inverse = torch.unique(rows, return_inverse=True)
        values = [self._buffer.take(key, unique.numpy()) for key, _, _ in self._parts]
        return self._joined(values, unique.numpy())[inverse]

    def split(self, size: int, /) -> Iterator[Tensor]:
        """All rows in order, at most `size` at a time, like Tensor.split; of images fewer, by their size."""
        for start, values in self._blocks(size):
            yield self._joined(values, np.arange(start, start + len(values[0])))

    def surveyed(self) -> list[Column]:
        """Survey all columns of a vector; reads all rows."""
        blocks = (flat(values, self._parts) for _, values in self._blocks(BLOCK_ROWS))
        return survey(column_names(self._parts), blocks, self._buffer.n_steps)

    def frames(self) -> Frames:
        """Survey all images; reads all rows."""
        found = FrameSurvey()
        for images in self.split(BLOCK_ROWS):
            found.add(images)
        return found.result()

    def _blocks(self, size: int) -> Iterator[tuple[int, list[np.ndarray]]]:
        if self._pixels is not None:
            size = min(size, block_rows(self._buffer, self._parts[0][0]))
        for start in range(0, self._buffer.n_steps, size):
            stop = min(start + size, self._buffer.n_steps)
            yield start, [self._buffer.rows(key, start, stop) for key, _, _ in self._parts]

    def _joined(self, values: list[np.ndarray], rows: np.ndarray) -> Tensor:
        if self._pixels is not None:
            return as_images(self._buffer, self._name, self._parts[0][0], self._pixels, values[0], rows)
        return joined(f"{self._buffer.location}: {self._name!r}", values, self._parts)


def joined(what: str, values: Sequence[np.ndarray], parts: Sequence[Columns]) -> Tensor:
    """Concatenate columns of arrays [rows, ...] into float32 [rows, dim]; raises ValueError on float32 overflow."""
    with np.errstate(over="ignore"):
        found = flat(values, parts).astype(np.float32)
    if not np.isfinite(found).all():
        raise ValueError(f"{what} ({[key for key, _, _ in parts]}) holds numbers beyond float32's 3.4e38")
    return torch.from_numpy(found)


def flat(values: Sequence[np.ndarray], parts: Sequence[Columns]) -> np.ndarray:
    """Concatenate columns of arrays [rows, ...] into [rows, dim], in a type that holds all of them."""
    own = [v.reshape(len(v), -1)[:, start:stop] for v, (_, start, stop) in zip(values, parts, strict=True)]
    return np.concatenate(own, axis=1)


def column_names(parts: Sequence[Columns]) -> list[str]:
    """The names of all columns, such as "state[2]"."""
    return [f"{key}[{column}]" for key, start, stop in parts for column in range(start, stop)]
