"""The checks of a tensor in a torch file: whether it lies within its storage."""

import math
from typing import Any

import torch

from diffpolicy.interop.inert import RefusedError, Storage, TensorView

MAX_DIMENSIONS = 16

DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


def checked_view(storage: Any, offset: Any, shape: Any, stride: Any) -> TensorView:
    """The tensor of these numbers, each element of which has a place of its own in the storage.

    Raises:
        RefusedError: they are no numbers, or they lie about the storage.
    """
    if not isinstance(storage, Storage) or not isinstance(shape, tuple) or not isinstance(stride, tuple):
        raise RefusedError("a tensor without storage, size or stride")
    if len(shape) != len(stride) or len(shape) > MAX_DIMENSIONS:
        raise RefusedError(f"a tensor with {len(shape)} sizes and {len(stride)} strides")
    if any(type(number) is not int or not 0 <= number < 2**48 for number in (offset, *shape, *stride)):
        raise RefusedError("a tensor with an offset, size or stride that is no number of elements")
    numel = math.prod(shape)
    last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True)) if numel else offset - 1
    if last >= storage.numel or numel > storage.numel:
        raise RefusedError(f"a tensor of {numel} elements up to number {last} in a storage of {storage.numel}")
    return TensorView(storage, offset, shape, stride)
