"""Opening and creating zarr stores: a directory, a read-only .zip, or a remote URL; formats 2 and 3, written as 3."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import zarr
from zarr.abc.store import ByteRequest
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import ZipStore

from diffpolicy.data.archive import other_format
from diffpolicy.data.checks import Specs
from diffpolicy.data.groups import open_group
from diffpolicy.data.image_codecs import IMAGE_CODECS
from diffpolicy.data.mark import NAME as MARK
from diffpolicy.data.mark import read_mark, write_mark
from diffpolicy.data.memory_bounds import METADATA, BoundedStore, check_members, check_metadata
from diffpolicy.data.replacing import discard_leftovers, finish_swap
from diffpolicy.system.plain import shown_text

CHUNK_BYTES = 2**20
CHUNK_ROWS = 2048
ENDS_PER_CHUNK = 4096
LEVEL, IMAGE_LEVEL = 9, 5  # of zstd: on images, 9 is forty times slower than 5 and saves little
_CHUNK = re.compile(r"/c(/\d+)+$")


class WholeStore(BoundedStore):
    """A read-only store of a buffer that we wrote: a missing chunk is an error, where zarr would read zeros.

    Files from other writers may omit chunks that hold only the fill value.
    """

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        found = await super().get(key, prototype, byte_range)
        if found is None and _CHUNK.search(key):
            raise FileNotFoundError(f"chunk {key} is missing")
        return found


def open_root(location: str | os.PathLike[str], mode: str = "r") -> zarr.Group:
    """Open the root group at a directory, .zip or fsspec URL; `mode` is "r", or "a" for a directory.

    Raises:
        FileNotFoundError: there is nothing at `location`.
        ConnectionError: the URL cannot be reached.
        ImportError: this kind of URL needs another package.
        ValueError: it is not a readable zarr store, or cannot be opened in this mode.
    """
    if mode not in ("r", "a"):
        raise ValueError(f'{location}: mode is {mode!r}, expected "r" (read) or "a" (append)')
    is_url = "://" in str(location)
    if not is_url:
        finish_swap(Path(location))
    if mode == "a" and (is_url or Path(location).is_file()):
        raise ValueError(f"{location}: only a directory can be appended to; copy it to one with buffer.copy(path)")
    root = _open_url(str(location)) if is_url else _open_path(Path(location), mode)
    if mode == "a":
        return root
    try:
        is_whole = read_mark(root, str(location)) is not None
        return open_group((WholeStore if is_whole else BoundedStore)(root.store), path=root.path)
    except BaseException:
        root.store.close()
        raise


def create_root(path: Path, specs: Specs) -> zarr.Group:
    """Create an empty buffer (zarr format 3) at `path`; `specs` maps each key to (shape of one row, dtype)."""
    root = zarr.create_group(str(path), zarr_format=3)
    data, meta = root.create_group("data"), root.create_group("meta")
    for key, (row_shape, dtype) in specs.items():
        rows = CHUNK_BYTES // max(1, int(np.prod(row_shape)) * np.dtype(dtype).itemsize)
        _create_array(data, key, tuple(row_shape), np.dtype(dtype), min(max(rows, 1), CHUNK_ROWS))
    _create_array(meta, "episode_ends", (), np.dtype("int64"), ENDS_PER_CHUNK)
    write_mark(root, list(specs), np.empty(0, dtype=np.int64), [])
    return root


def writable(array: zarr.Array) -> zarr.Array:
    """The same array, set to write chunks even if they hold only the fill value; zarr does not store this setting."""
    return array.with_config({"write_empty_chunks": True})


def _create_array(group: zarr.Group, key: str, row_shape: tuple[int, ...], dtype: np.dtype, rows: int) -> None:
    shuffle = "shuffle" if dtype.itemsize > 1 else "noshuffle"
    level = IMAGE_LEVEL if len(row_shape) == 3 else LEVEL
    group.create_array(
        key,
        shape=(0, *row_shape),
        dtype=dtype,
        chunks=(rows, *row_shape),
        # The checksum turns a flipped bit into an error: Blosc alone would decode it to wrong numbers.
        compressors=[BloscCodec(cname="zstd", clevel=level, shuffle=shuffle), Crc32cCodec()],
        fill_value=0,
    )


def _open_path(path: Path, mode: str) -> zarr.Group:
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: no data set here; give the path of a .zarr directory or .zarr.zip, "
            "or record one with ReplayBuffer.create"
        )
    root = _open_zip(path) if path.is_file() else _open_directory(path, mode)
    if mode == "a" and MARK in root.attrs:
        discard_leftovers(path)
    return root


def _open_directory(path: Path, mode: str) -> zarr.Group:
    if not any((path / name).exists() for name in ("zarr.json", ".zgroup")):
        raise ValueError(
            f"{path}: not a zarr group, found neither zarr.json (format 3) nor .zgroup (format 2); "
            "in training, data.format names another format"
        )
    for file in (path / name for name in METADATA if (path / name).is_file()):
        check_metadata(str(file), file.stat().st_size)
    with reading(str(path)):
        return open_group(str(path), mode="r" if mode == "r" else "r+")


def _open_zip(path: Path) -> zarr.Group:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            check_members(str(path), archive)
    except zipfile.BadZipFile as error:
        if found := other_format(path):
            raise ValueError(
                f"{path}: is {found}, expected a .zarr directory or a .zarr.zip; record its episodes with "
                "ReplayBuffer.create, see docs/data_format.md"
            ) from error
        raise ValueError(
            f"{path}: not a readable zip, truncated or corrupt ({shown_text(str(error))}); copy or download it again"
        ) from error
    if not {"zarr.json", ".zgroup"} & set(names):
        raise ValueError(
            f"{path}: no zarr group at the top of the zip, expected zarr.json or .zgroup, found {names[:5]}"
        )
    with reading(str(path)):
        # An explicit ZipStore, because zarr takes a bare path for a directory.
        return open_group(ZipStore(path, mode="r"))


def _open_url(url: str) -> zarr.Group:
    if url.endswith(".zip"):
        raise ValueError(f"{url}: a zip is not read over a URL; download it and open the file")
    try:
        return open_group(url)
    except ImportError as error:
        raise ImportError(
            f"{url}: this kind of URL needs another package ({error}); for http: pip install 'diffpolicy[remote]'"
        ) from error
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{url}: no zarr group at this URL") from error
    except OSError as error:  # connection refused, unknown host, timeout
        raise ConnectionError(f"{url}: cannot be reached ({error}); try again, or copy the data set here") from error
    except Exception as error:
        raise ValueError(f"{url}: cannot be opened as a zarr group: {shown_text(str(error))}") from error


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Convert any exception that a store or codec raises on damaged data into a ValueError that names `what`."""
    try:
        yield
    except Exception as error:
        kind = type(error).__name__
        state, cure = "truncated or corrupt, cannot", "copy or download the data set again"
        if kind == "UnknownCodecError":
            state, cure = "cannot", "install the package that has its codec"
            if any(codec in str(error) for codec in IMAGE_CODECS):
                cure = "pip install 'diffpolicy[images]'"
        raise ValueError(f"{what}: {state} be decoded ({kind}: {shown_text(str(error))}); {cure}") from error
