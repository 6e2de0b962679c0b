"""Safetensors files: the header, with names, dtypes and shapes, is checked before a byte of the tensors is read.

8 bytes      length n of the header, little-endian
n bytes      JSON, {name: {"dtype": "F32", "shape": [...], "data_offsets": [start, stop]}}
the rest     the tensors, without gaps
"""

import hashlib
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from diffpolicy.system.plain import parsed, shown, shown_text

MAX_HEADER_BYTES = 16 * 2**20
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class Spec(NamedTuple):
    """What a tensor must be; None in `shape` stands for any size."""

    dtype: torch.dtype
    shape: tuple[int | None, ...]


Specs = Mapping[str, Spec]


def specs(tensors: Mapping[str, Tensor]) -> dict[str, Spec]:
    """The specs of tensors, which may be on the meta device."""
    return {name: Spec(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}


def header(file: BinaryIO, where: str) -> dict[str, Tensor]:
    """The tensors of an open safetensors file on the meta device, as its header describes them.

    Raises:
        ValueError: it is no header, or the file does not have the size that it claims.
    """
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
        raise ValueError(f"{where} is damaged: a header of {length} bytes in a file of {size}")
    content = parsed(file.read(length), f"{where}: the header")
    file.seek(0)
    if not isinstance(content, dict):
        raise ValueError(f"{where} is damaged: the header is {shown(content)}, expected names of tensors")
    found = {key: _spec(value, f"{where}: {shown(key)}") for key, value in content.items() if key != "__metadata__"}
    claimed = sum(dtype.itemsize * math.prod(shape) for dtype, shape in found.values())
    if claimed != size - 8 - length:
        raise ValueError(f"{where} is damaged: tensors of {claimed} bytes in {size - 8 - length} bytes of the file")
    return {key: torch.empty(shape, dtype=dtype, device="meta") for key, (dtype, shape) in found.items()}


def read(path: Path, where: str) -> dict[str, Tensor]:
    """The tensors of a file, whose header is checked first; `where` begins the error message.

    Raises:
        ValueError: the file is damaged.
    """
    with path.open("rb") as file:
        header(file, where)
        return loaded(file.read(), where)


def loaded(data: bytes, where: str) -> dict[str, Tensor]:
    """The tensors in the content of a file; raises ValueError if there are none that safetensors can read."""
    try:
        return safetensors.torch.load(data)
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"{where} holds no tensors that safetensors can read ({shown_text(str(error))})") from error


def check(found: Specs, expected: Specs, where: str) -> None:
    """Check that `found` has the names, shapes and dtypes of `expected`; `where` begins the error message.

    Raises:
        ValueError: they differ.
    """
    missing, extra = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if missing or extra:
        raise ValueError(f"{where}: missing tensors {_some(missing)}, unknown tensors {_some(extra)}")
    for name, (dtype, shape) in expected.items():
        is_like = len(found[name].shape) == len(shape) and all(
            there == n or n is None for there, n in zip(found[name].shape, shape, strict=True)
        )
        if not is_like:
            raise ValueError(
                f"{where}: {name} has shape {shown(list(found[name].shape))}, expected "
                f"[{', '.join('any' if n is None else str(n) for n in shape)}]"
            )
        if found[name].dtype != dtype:
            raise ValueError(f"{where}: {name} is {found[name].dtype}, expected {dtype}")


def check_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """Raise ValueError if a tensor holds NaN or infinity."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ValueError(f"{where}: {name} holds NaN or infinity")


def digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of the names and values of tensors."""
    found = hashlib.sha256()
    for name in sorted(state):
        found.update(name.encode())
        found.update(state[name].detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _spec(value: object, where: str) -> tuple[torch.dtype, tuple[int, ...]]:
    dtype = DTYPES.get(str(value.get("dtype"))) if isinstance(value, dict) else None
    shape = value.get("shape") if isinstance(value, dict) else None
    if dtype is None or not isinstance(shape, list) or not all(type(n) is int and 0 <= n < 2**40 for n in shape):
        raise ValueError(f"{where} is {shown(value)}, expected dtype, shape and data_offsets of a tensor")
    return dtype, tuple(shape)


def _some(names: list[str]) -> list[str]:
    return names if len(names) <= 8 else [*names[:8], f"and {len(names) - 8} more"]
