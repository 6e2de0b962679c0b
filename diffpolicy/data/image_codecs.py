"""JPEG, JPEG 2000 and JPEG XL as published data sets store them: found in imagecodecs, and sized beforehand."""

from __future__ import annotations

from collections.abc import Iterator

IMAGE_CODECS = ("imagecodecs_jpeg", "imagecodecs_jpeg2k", "imagecodecs_jpegxl")
_SIGNATURES = (b"\x00\x00\x00\x0cjP  ", b"\x00\x00\x00\x0cJXL ")  # of files of boxes
_JPEG_WITHOUT_LENGTH = (0x01, *range(0xD0, 0xD9))
_JPEG_SIZES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JXL_SIZES = (9, 13, 18, 30)  # bits
_JXL_RATIOS = {1: (1, 1), 2: (12, 10), 3: (4, 3), 4: (3, 2), 5: (16, 9), 6: (5, 4), 7: (2, 1)}


def registered() -> bool:
    """Make the codecs of imagecodecs known to zarr; False if it is not installed."""
    try:
        from imagecodecs import numcodecs
    except ImportError:
        return False
    numcodecs.register_codecs(verbose=False)
    return True


def decoded_bytes(codec: str, data: bytes) -> int:
    """The size of the 8-bit image that a chunk decodes to, by its header.

    Raises:
        ValueError: it has no such header.
    """
    try:
        if codec == "imagecodecs_jpeg":
            return _jpeg(data)
        return _jpeg2k(data) if codec == "imagecodecs_jpeg2k" else _jpegxl(data)
    except IndexError:
        raise ValueError(f"no image of {codec}") from None


def _jpeg(data: bytes) -> int:
    """Of the frame header (ITU-T T.81, B.2.2)."""
    at = 2
    while data[:2] == b"\xff\xd8":
        if data[at] != 0xFF:
            break
        marker = data[at + 1]
        if marker in _JPEG_SIZES:
            height, width = _number(data, at + 5, 2), _number(data, at + 7, 2)
            return height * width * data[at + 9]
        fill = marker == 0xFF  # any number of these may come before a marker
        at += 1 if fill else 2 if marker in _JPEG_WITHOUT_LENGTH else 2 + _number(data, at + 2, 2)
    raise ValueError("no JPEG header")


def _jpeg2k(data: bytes) -> int:
    """Of the marker SIZ (ITU-T T.800, A.5.1)."""
    stream = _codestream(data, b"jp2c")
    if stream[:4] != b"\xff\x4f\xff\x51":
        raise ValueError("no JPEG 2000 header")
    right, bottom, left, top = (_number(stream, at, 4) for at in (8, 12, 16, 20))
    return max(right - left, 0) * max(bottom - top, 0) * _number(stream, 40, 2)


def _jpegxl(data: bytes) -> int:
    """Of the size header (ISO/IEC 18181-1, D.2), with three colours."""
    stream = _codestream(data, b"jxlc", b"jxlp")
    if stream[:2] != b"\xff\x0a":
        raise ValueError("no JPEG XL header")
    bits = _Bits(stream[2:12])
    is_small = bits.take(1) == 1
    height = _jxl_side(bits, is_small)
    ratio = bits.take(3)
    if ratio == 0:
        return height * _jxl_side(bits, is_small) * 3
    across, down = _JXL_RATIOS[ratio]
    return height * (height * across // down) * 3


def _jxl_side(bits: _Bits, is_small: bool) -> int:
    return 8 * (bits.take(5) + 1) if is_small else bits.take(_JXL_SIZES[bits.take(2)]) + 1


class _Bits:
    """Bits from the lowest of the first byte upwards."""

    def __init__(self, data: bytes) -> None:
        self._left, self._value = 8 * len(data), int.from_bytes(data, "little")

    def take(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise IndexError
        value = self._value & ((1 << count) - 1)
        self._value >>= count
        return value


def _codestream(data: bytes, *kinds: bytes) -> bytes:
    """The begin of the coded image, which may lie in a file of boxes."""
    if not data.startswith(_SIGNATURES):
        return data[:64]
    for kind, start in _boxes(data):
        if kind in kinds:
            start += 4 if kind == b"jxlp" else 0  # the number of the part
            return data[start : start + 64]
    raise ValueError("no coded image in its file")


def _boxes(data: bytes) -> Iterator[tuple[bytes, int]]:
    """(kind, where the content starts) of each box (ITU-T T.800, I.4)."""
    at = 0
    while at + 8 <= len(data):
        size, start = _number(data, at, 4), at + 8
        if size == 1:
            size, start = _number(data, at + 8, 8), at + 16
        yield data[at + 4 : at + 8], start
        if size < start - at:  # 0: up to the end
            return
        at += size


def _number(data: bytes, at: int, size: int) -> int:
    if at + size > len(data):
        raise IndexError
    return int.from_bytes(data[at : at + size], "big")
