"""Writing images as mp4 files that hold many episodes one after the other, encoded as LeRobot does: AV1."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

CODEC, PIXELS = "libsvtav1", "yuv420p"
OPTIONS = {"g": "2", "crf": "30", "preset": "12"}  # LeRobot's: a key frame every two frames, so that seeking is cheap
LEAST_SIZE = 64  # pixels, of the encoder


class VideoFiles:
    """The videos of one feature; another file begins when one is full.

    Args:
        folder, template: where they go; the template has the fields video_key, chunk_index and file_index.
        most_mb: the size after which another file begins.
    """

    def __init__(self, folder: Path, template: str, name: str, fps: float, most_mb: int) -> None:
        self._folder, self._template, self._name = folder, template, name
        self._fps, self._most_mb = Fraction(fps).limit_denominator(100_000), most_mb
        self._container: Any = None
        self._path, self._file = folder, -1
        self._frames = self._begun = 0  # of the file; where the episode began

    def add(self, images: np.ndarray) -> None:
        """Encode uint8 [n, height, width, 3] as the next frames of the episode.

        Raises:
            ValueError: a video cannot hold images of this size.
        """
        if self._container is None:
            self._container = self._begin(*images.shape[1:])
        for image in images:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts, frame.time_base = self._frames, 1 / self._fps
            self._container.mux(self._stream.encode(frame))
            self._frames += 1

    def end_episode(self) -> dict[str, Any]:
        """Where the episode lies, as columns of meta/episodes."""
        chunk, file = divmod(self._file, 1000)
        found = {
            "chunk_index": chunk,
            "file_index": file,
            "from_timestamp": float(self._begun / self._fps),
            "to_timestamp": float(self._frames / self._fps),
        }
        self._begun = self._frames
        if self._path.exists() and self._path.stat().st_size > self._most_mb * 2**20:  # the encoder may lag behind
            self.close()
        return {f"videos/{self._name}/{key}": value for key, value in found.items()}

    def close(self) -> None:
        """Finish the current file."""
        if self._container is not None:
            self._container.mux(self._stream.encode())
            self._container.close()
            self._container = None

    def info(self, height: int, width: int, channels: int) -> dict[str, Any]:
        """The description of the videos for info.json."""
        sizes = {"video.height": height, "video.width": width, "video.codec": "av1", "video.pix_fmt": PIXELS}
        rate = int(self._fps) if self._fps.denominator == 1 else float(self._fps)
        described = {"video.is_depth_map": False, "video.fps": rate, "video.channels": channels, "has_audio": False}
        return {**sizes, **described}

    def _begin(self, height: int, width: int, channels: int) -> Any:
        """Open the next file."""
        if channels != 3 or height % 2 or width % 2 or min(height, width) < LEAST_SIZE:
            raise ValueError(
                f"feature {self._name!r}: images of {height} x {width} x {channels} do not go into a video, expected "
                f"even sizes of at least {LEAST_SIZE} and 3 channels; images=png stores any"
            )
        self._file += 1
        chunk, file = divmod(self._file, 1000)
        place = {"video_key": self._name, "chunk_index": chunk, "file_index": file}
        self._path = self._folder / self._template.format(**place)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("SVT_LOG", "1")  # errors only; the encoder reads it when it begins
        container: Any = av.open(str(self._path), "w")
        self._stream = container.add_stream(CODEC, rate=self._fps, options=OPTIONS)
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, PIXELS
        self._frames = self._begun = 0
        return container
