"""Single images, PNG or JPEG, to and from arrays of bytes."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image

from diffpolicy.formats.bounds import decoding
from diffpolicy.system.pixels import PixelFormat, converted

MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def decode(data: bytes, shape: tuple[int, ...], where: str) -> np.ndarray:
    """Decode an image of the expected `shape` [height, width, channels] to uint8.

    Raises:
        ValueError: it is damaged, no PNG or JPEG, or has another shape, which is found before it is decoded.
    """
    with decoding(where, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG"))
    height, width, channels = shape
    if image.size != (width, height) or image.mode not in MODES.values():
        raise ValueError(
            f"{where}: is an image of {image.size[1]} x {image.size[0]} pixels, mode {image.mode}; expected "
            f"{height} x {width}, mode {MODES.get(channels)}"
        )
    with decoding(where, OSError, ValueError, SyntaxError):
        pixels = np.asarray(image if image.mode == MODES[channels] else image.convert(MODES[channels]))
    return pixels.reshape(shape)


def encode(pixels: np.ndarray) -> bytes:
    """Encode uint8 [height, width, 1, 3 or 4] as PNG, which is exact."""
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def is_image(shape: tuple[int, ...], dtype: np.dtype) -> bool:
    """Whether rows of this shape and type are images: [height, width, 1, 3 or 4] of bytes, or of floats."""
    return len(shape) == 3 and shape[-1] in MODES and (dtype == np.uint8 or dtype.kind == "f")


def as_bytes(values: np.ndarray, where: str) -> np.ndarray:
    """Images [n, height, width, channels] as uint8.

    As for observations (`system.pixels`), floats must be whole numbers from 0 to 255. An image of floats from 0 to 1 is
    refused even if they are whole numbers: nothing tells whether 1 is white or almost black.

    Raises:
        ValueError: an image is none of bytes; the message names the first.
    """
    if values.dtype == np.uint8:
        return values
    pixels, reasons = converted(torch.from_numpy(np.ascontiguousarray(values)), PixelFormat())
    if reasons:
        index, why = next(iter(reasons.items()))
        raise ValueError(
            f"{where}: image {index} of those read {why}; convert the array first, or leave it out with "
            f"leave_out=[{where.rsplit(' ', 1)[-1]}]"
        )
    return pixels.numpy()
