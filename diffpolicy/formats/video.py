"""Frames of an mp4 file by their times, decoded one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import FFmpegError
from av.video.reformatter import VideoReformatter

from diffpolicy.formats.bounds import decoding

AHEAD_FRAMES = 32  # a frame no further ahead than this is reached by decoding, another one by seeking
MOST_ERROR = 0.25  # of the time between two frames
ONE_THREAD = {"threads": 1} if int(av.__version__.split(".")[0]) >= 17 else {}  # before, it was the default


class Video:
    """One video file. Frames that are asked for in the order of their times are decoded once.

    Args:
        path: the file.
        shape: the expected [height, width, 3].
        fps: the expected frames per second.
        where: file and feature, for error messages.

    Raises:
        ValueError: the file is damaged, or has another size or rate.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], fps: float, where: str) -> None:
        self._where, self._fps, self._shape = where, fps, shape
        self._frames: Iterator[Any] = iter(())
        self._current: Any = None
        self._rgb = VideoReformatter()
        with decoding(where, FFmpegError, OSError):
            self._container = av.open(str(path))
        try:
            self._stream = self._checked_stream()
        except BaseException:
            self._container.close()
            raise
        self._stream.codec_context.thread_count = 1  # conversions run in several processes instead

    def frames(self, times_s: np.ndarray) -> np.ndarray:
        """The frames at increasing times, uint8 [n, height, width, 3].

        Raises:
            ValueError: a frame does not decode, or there is none at a time.
        """
        found = np.empty((len(times_s), *self._shape), np.uint8)
        for index, time_s in enumerate(times_s):
            frame = self._at(float(time_s))
            with decoding(self._where, FFmpegError, ValueError):
                height, width, _ = self._shape
                found[index] = self._rgb.reformat(frame, width, height, "rgb24", **ONE_THREAD).to_ndarray()
        return found

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def _checked_stream(self) -> Any:
        if not self._container.streams.video:
            raise ValueError(f"{self._where}: holds no video stream")
        stream = self._container.streams.video[0]
        found = stream.codec_context.height, stream.codec_context.width
        if found != self._shape[:2]:
            raise ValueError(f"{self._where}: frames of {found[0]} x {found[1]} pixels, expected {self._shape[:2]}")
        rate = stream.average_rate
        if rate and stream.frames > 1 and abs(float(rate) / self._fps - 1) > 0.01:
            raise ValueError(f"{self._where}: {float(rate):g} frames per second, expected {self._fps:g} (info.json)")
        return stream

    def _at(self, time_s: float) -> Any:
        tolerance_s = MOST_ERROR / self._fps
        now = self._current.time if self._current is not None else None
        if now is None or time_s < now - tolerance_s or time_s > now + AHEAD_FRAMES / self._fps:
            self._seek(time_s)
        while self._current is not None and self._current.time < time_s - tolerance_s:
            self._advance()
        if self._current is None or self._current.time > time_s + tolerance_s:
            ends = "it ends before" if self._current is None else f"the next one is at {self._current.time:.3f} s"
            raise ValueError(f"{self._where}: no frame at {time_s:.3f} s, {ends}; copy or download it again")
        return self._current

    def _seek(self, time_s: float) -> None:
        with decoding(self._where, FFmpegError):
            offset = int(Fraction(time_s + MOST_ERROR / self._fps) / self._stream.time_base)
            self._container.seek(offset, stream=self._stream)
            self._frames = self._container.decode(self._stream)
        self._advance()

    def _advance(self) -> None:
        with decoding(self._where, FFmpegError):
            self._current = next(self._frames, None)
