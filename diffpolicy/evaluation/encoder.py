"""Writes frames as an H.264 video through ffmpeg, and makes sure that all of them have arrived."""

import os
import subprocess
import tempfile
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import numpy.typing as npt

MACRO_BLOCK = 2  # frames are scaled up to multiples of this, which H.264 needs


class VideoFile:
    """An mp4 file that gets its name once it is complete and checked.

    Args:
        path: where to write it.
        fps: frames per second.

    Raises:
        OSError: ffmpeg cannot be started, or fails.
    """

    def __init__(self, path: Path, fps: float) -> None:
        self._path, self._fps = path, fps
        self._unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp.mp4")
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 # a pipe that fills up would block
        self._process: subprocess.Popen[bytes] | None = None
        self._frames = 0

    def append(self, frame: npt.NDArray[np.uint8]) -> None:
        """Add a frame [height, width, 3]; all have the same size.

        Raises:
            OSError: ffmpeg has ended; the message has its last line.
        """
        if self._process is None:
            self._process = self._start(*frame.shape[:2])
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(np.ascontiguousarray(frame).tobytes())
        except BrokenPipeError as error:
            self._process.wait()
            raise self._failure(f"exit status {self._process.returncode}") from error
        self._frames += 1

    def close(self) -> None:
        """Finish the file; without frames there is none.

        Raises:
            OSError: ffmpeg failed, or frames are missing in the file, which is then removed.
        """
        if self._process is None:
            return
        process, self._process = self._process, None
        try:
            try:
                process.communicate()
            except BrokenPipeError:
                process.wait()
            if process.returncode:
                raise self._failure(f"exit status {process.returncode}")
            self._check()
            os.replace(self._unfinished, self._path)
        finally:
            self._unfinished.unlink(missing_ok=True)
            self._errors.close()

    def _start(self, height: int, width: int) -> subprocess.Popen[bytes]:
        even = [-(-size // MACRO_BLOCK) * MACRO_BLOCK for size in (width, height)]
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24"]
        command += ["-s", f"{width}x{height}", "-r", f"{self._fps:.3f}", "-i", "-", "-an", "-vcodec", "libx264"]
        command += ["-pix_fmt", "yuv420p", "-crf", "25"]
        command += ["-vf", "scale={}:{}".format(*even)] if even != [width, height] else []
        command.append(str(self._unfinished))
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=self._errors)

    def _check(self) -> None:
        try:
            found, _ = imageio_ffmpeg.count_frames_and_secs(str(self._unfinished))
        except RuntimeError as error:
            raise self._failure(f"it cannot be read again: {error}") from error
        if found != self._frames:
            raise self._failure(f"{found} of {self._frames} frames are in the file")

    def _failure(self, what: str) -> OSError:
        self._errors.seek(0)
        said = (self._errors.read().strip().splitlines() or ["nothing on stderr"])[-1]
        return OSError(f"video {self._path}: ffmpeg failed ({what}): {said}")
