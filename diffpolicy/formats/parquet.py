"""Columns of Parquet files as arrays. Claims are checked against the size of the file before anything is decoded."""

from __future__ import annotations

import math
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from diffpolicy.formats.bounds import check_claim, decoding
from diffpolicy.formats.images import decode

CACHE_BYTES = 256 * 2**20  # decoded columns of numbers
ERRORS = (pa.ArrowException, OSError, ValueError, MemoryError)
_SPENT = 64  # bytes per value of a text or list in memory, at most


class Columns:
    """The columns of the files of one data set; the last ones are kept in memory."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[Path, str], np.ndarray] = OrderedDict()
        self._file: tuple[Path, pq.ParquetFile] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"_kept": OrderedDict(), "_file": None}

    def n_rows(self, path: Path) -> int:
        """The number of rows of a file; raises ValueError if it is damaged."""
        return self._opened(path).metadata.num_rows

    def numbers(self, path: Path, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """A whole column of numbers, [n_rows, *shape].

        Raises:
            ValueError: the file is damaged, has no such column, or a row has another shape or type.
        """
        if (path, name) not in self._kept:
            where = f"{path}: feature {name!r}"
            check_claim(where, self.n_rows(path) * max(1, math.prod(shape)) * dtype.itemsize, path.stat().st_size)
            self._kept[path, name] = as_numbers(self._column(path, name), shape, dtype, where)
            while len(self._kept) > 1 and sum(each.nbytes for each in self._kept.values()) > CACHE_BYTES:
                self._kept.popitem(last=False)
        self._kept.move_to_end((path, name))
        return self._kept[path, name]

    def images(self, path: Path, name: str, rows: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Decode the images in the given rows, in increasing order: uint8 [len(rows), *shape].

        Only the row groups that hold them are read. Raises ValueError as `numbers`.
        """
        file = self._opened(path)
        where = f"{path}: feature {name!r}"
        counts = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
        ends = np.cumsum(counts)
        found = np.empty((len(rows), *shape), np.uint8)
        groups = np.searchsorted(ends, rows, side="right")
        for group in np.unique(groups):
            start, chosen = int(ends[group] - counts[group]), np.flatnonzero(groups == group)
            wanted = dict(zip((rows[chosen] - start).tolist(), chosen.tolist(), strict=True))
            self._decode(file, name, int(group), wanted, found, where)
        return found

    def _decode(
        self, file: pq.ParquetFile, name: str, group: int, wanted: dict[int, int], found: np.ndarray, where: str
    ) -> None:
        """Decode images of one row group: row in the group -> index in `found`."""
        first, last = min(wanted), max(wanted)
        row = 0
        self._require(file, name, where)
        with decoding(where, *ERRORS):
            batches = file.iter_batches(batch_size=64, row_groups=[group], columns=[name])
        while row <= last:
            with decoding(where, StopIteration, *ERRORS):
                column = next(batches).column(0)
            here = range(max(first, row), min(last + 1, row + len(column)))
            data = column.field("bytes") if pa.types.is_struct(column.type) else column
            for each in here:
                if each in wanted:
                    value = data[each - row].as_py()
                    if not isinstance(value, bytes):
                        raise ValueError(f"{where}: row {each} of row group {group} holds no image, but {type(value)}")
                    found[wanted[each]] = decode(value, found.shape[1:], f"{where}, row {each} of row group {group}")
            row += len(column)

    def _column(self, path: Path, name: str) -> pa.ChunkedArray:
        file = self._opened(path)
        self._require(file, name, str(path))
        with decoding(f"{path}: feature {name!r}", *ERRORS):
            return file.read(columns=[name]).column(0)

    def _require(self, file: pq.ParquetFile, name: str, where: str) -> None:
        if name not in file.schema_arrow.names:
            raise ValueError(f"{where}: no column {name!r}, it has {', '.join(file.schema_arrow.names[:20])}")

    def _opened(self, path: Path) -> pq.ParquetFile:
        if self._file is None or self._file[0] != path:
            self._file = path, opened(path)
        return self._file[1]


def opened(path: Path) -> pq.ParquetFile:
    """Open a Parquet file; raises ValueError if it is damaged."""
    with decoding(str(path), *ERRORS):
        return pq.ParquetFile(path)


def read_rows(path: Path, names: list[str]) -> list[dict[str, Any]]:
    """The rows of a small file as plain values, with those columns that it has.

    Raises:
        ValueError: the file is damaged, or claims more than its size can stand for.
    """
    file = opened(path)
    columns = [name for name in names if name in file.schema_arrow.names]
    check_claim(str(path), file.metadata.num_rows * max(1, len(columns)) * _SPENT, path.stat().st_size)
    with decoding(str(path), *ERRORS):
        return file.read(columns=columns).to_pylist()


def as_numbers(column: pa.ChunkedArray, shape: tuple[int, ...], dtype: np.dtype, where: str) -> np.ndarray:
    """A column of numbers, or of lists of numbers, as [n_rows, *shape]; raises ValueError if a row is different."""
    n_rows, values = len(column), column.combine_chunks()
    if isinstance(values, pa.ChunkedArray):  # as some versions of pyarrow return
        values = pa.concat_arrays(values.chunks) if values.num_chunks else pa.array([], column.type)
    sizes = shape
    while True:
        if values.null_count:
            raise ValueError(f"{where}: {values.null_count} rows are empty, expected numbers of shape {shape}")
        if isinstance(values, pa.ExtensionArray):
            values = values.storage
        elif pa.types.is_fixed_size_list(values.type) or pa.types.is_list(values.type):
            lengths = np.unique(values.value_lengths().to_numpy(zero_copy_only=False))
            if len(lengths) and (not sizes or lengths.tolist() != [sizes[0]]):
                raise ValueError(
                    f"{where}: rows have lengths {lengths[:5].tolist()}, expected shape {shape} (info.json)"
                )
            sizes, values = sizes[1:], values.flatten()
        else:
            break
    if not (pa.types.is_primitive(values.type) or pa.types.is_boolean(values.type)):
        raise ValueError(f"{where}: holds {values.type}, expected {dtype}")
    numbers = values.to_numpy(zero_copy_only=False)
    if not np.can_cast(numbers.dtype, dtype, "same_kind") or len(numbers) != n_rows * math.prod(shape):
        raise ValueError(
            f"{where}: holds {len(numbers)} numbers of {numbers.dtype}, expected {n_rows} x {shape} {dtype}"
        )
    return numbers.astype(dtype).reshape(n_rows, *shape)
