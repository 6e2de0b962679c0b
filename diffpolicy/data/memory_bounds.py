"""Bounds on the memory that a data set claims: a few bytes on disk may stand for gigabytes of zeros.

An array may be large where its files are large, and a chunk may not decode to more than its shape needs.
"""

from __future__ import annotations

import bz2
import lzma
import math
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zarr
from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import LocalStore, WrapperStore, ZipStore

from diffpolicy.data.image_codecs import IMAGE_CODECS, decoded_bytes
from diffpolicy.system.plain import MAX_BYTES

FREE_BYTES = 64 * 2**20  # what any array or chunk may hold
MOST_INFLATION = 1000  # bytes in memory for each byte on disk, beyond that
COMPRESSORS = ("blosc", "zstd", "lz4", "gzip", "zlib", "bz2", "lzma", *IMAGE_CODECS)
PLAIN = ("crc32c", "bytes", "transpose", "delta", "shuffle", "fixedscaleoffset", "quantize", "bitround", "packbits")
_STREAMS = {
    "gzip": lambda: zlib.decompressobj(31),
    "zlib": zlib.decompressobj,
    "bz2": bz2.BZ2Decompressor,
    "lzma": lzma.LZMADecompressor,
}
METADATA = ("zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata")


@dataclass(frozen=True)
class Bound:
    """What a chunk of an array may decode to: at most `most_bytes`, with the compressor of that name."""

    compressor: str
    most_bytes: int

    def check(self, key: str, data: bytes) -> None:
        """Raise ValueError if a chunk decodes to more, by its header or, where it has none, by decoding that much."""
        if self.compressor in _STREAMS:
            claimed = len(_STREAMS[self.compressor]().decompress(data, self.most_bytes + 1))
        else:
            claimed = _claimed(self.compressor, data)
        if claimed > self.most_bytes:
            raise ValueError(f"chunk {key} decodes to more than the {self.most_bytes} bytes that its shape needs")


class BoundedStore(WrapperStore[Store]):
    """A store that refuses chunks beyond the bounds of their arrays, which `bound` adds."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.bounds: dict[str, Bound] = {}

    def _with_store(self, store: Store) -> BoundedStore:
        made = type(self)(store)
        made.bounds = self.bounds
        return made

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        is_metadata = key.endswith(METADATA)
        if is_metadata and isinstance(self._store, LocalStore | ZipStore) and await self._store.exists(key):
            check_metadata(key, await self._store.getsize(key))
        found = await super().get(key, prototype, byte_range)
        if found is not None and byte_range is None and not is_metadata:
            for path, bound in self.bounds.items():
                if key.startswith(f"{path}/"):
                    bound.check(key, found.to_bytes())
        return found


def check_metadata(name: str, n_bytes: int) -> None:
    """Raise ValueError if a file of metadata is too large to be some; zarr reads it whole."""
    if n_bytes > MAX_BYTES:
        raise ValueError(f"{name} has {n_bytes} bytes, expected at most {MAX_BYTES}")


def codec_names(array: zarr.Array) -> list[str]:
    """The names of the filters and compressors of an array, in the order of writing."""
    codecs = [*array.filters, *array.compressors]
    return [str(getattr(each, "codec_id", type(each).__name__.removesuffix("Codec"))).lower() for each in codecs]


def bound(name: str, array: zarr.Array) -> None:
    """Check what an array claims and bound its chunks; `name` begins the error message.

    Raises:
        ValueError: it claims more memory than its files on disk can stand for.
    """
    names = codec_names(array)
    used = [each for each in names if each in COMPRESSORS]
    unknown = [each for each in names if each not in (*COMPRESSORS, *PLAIN) and not each.startswith("sharding")]
    if unknown or len(used) > 1:
        raise ValueError(f"{name}: stored with {', '.join(names)}; expected at most one of {', '.join(COMPRESSORS)}")
    item = np.dtype(array.dtype).itemsize
    if 0 in array.shape[1:] or 0 in array.chunks:
        raise ValueError(f"{name}: has shape {array.shape}, chunks {array.chunks}; expected at least one number each")
    chunk, whole = math.prod(array.chunks) * item, math.prod(array.shape) * item
    if chunk > max(FREE_BYTES, whole):
        raise ValueError(f"{name}: chunks of shape {array.chunks} need {chunk} bytes each, more than the whole array")
    if whole > FREE_BYTES and (stored := _stored_bytes(array)) is not None and whole > MOST_INFLATION * stored:
        raise ValueError(f"{name}: shape {array.shape} needs {whole} bytes, but its files hold {stored}")
    if used and isinstance(array.store, BoundedStore):
        filters = 8 if len(names) > 1 else 1  # a filter may change the type
        path = array.path
        array.store.bounds[path] = Bound(used[0], filters * chunk + 2**16)


def check_members(location: str, archive: zipfile.ZipFile) -> None:
    """Raise ValueError if a member of a zip unpacks to much more than it holds."""
    for entry in archive.infolist():
        if entry.filename.endswith(METADATA):
            check_metadata(f"{location}: member {entry.filename!r}", entry.file_size)
        if entry.file_size > max(FREE_BYTES, MOST_INFLATION * entry.compress_size):
            raise ValueError(
                f"{location}: member {entry.filename!r} unpacks from {entry.compress_size} to {entry.file_size} bytes"
            )


def _stored_bytes(array: zarr.Array) -> int | None:
    """The bytes of an array's files; None if the store cannot tell."""
    store = array.store
    while isinstance(store, WrapperStore):
        store = store._store
    if isinstance(store, LocalStore):
        return sum(path.stat().st_size for path in Path(store.root, array.path).rglob("*") if path.is_file())
    if isinstance(store, ZipStore):
        with zipfile.ZipFile(store.path) as archive:
            prefix = f"{array.path}/"
            return sum(each.compress_size for each in archive.infolist() if each.filename.startswith(prefix))
    return None


def _claimed(compressor: str, data: bytes) -> int:
    """The decoded size in the header of a chunk; 0 if the chunk is too short to have one, which decoding reports."""
    if compressor in IMAGE_CODECS:
        return decoded_bytes(compressor, data)
    if compressor == "blosc":
        return int.from_bytes(data[4:8], "little")
    if compressor == "lz4":
        return int.from_bytes(data[:4], "little")
    if len(data) < 6:
        return 0
    flags, size_of = data[4], (0, 2, 4, 8)[data[4] >> 6]  # a zstd frame (RFC 8878, section 3.1.1.1)
    is_single = bool(flags & 32)
    start = 5 + (not is_single) + (0, 1, 2, 4)[flags & 3]
    if not size_of and not is_single:
        raise ValueError("a zstd frame without its decoded size")
    size = int.from_bytes(data[start : start + max(size_of, 1)], "little")
    return size + 256 if size_of == 2 else size
