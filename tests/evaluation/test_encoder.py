"""A video is complete, or there is an error and no file."""

import os
import stat
from pathlib import Path

import imageio.v3 as imageio
import imageio_ffmpeg
import numpy as np
import pytest

from diffpolicy.evaluation.encoder import VideoFile

FRAME = np.random.default_rng(0).integers(0, 256, (48, 40, 3), dtype=np.uint8)


def test_a_video_holds_every_frame_at_a_size_that_plays_everywhere(tmp_path: Path) -> None:
    file = VideoFile(tmp_path / "episode.mp4", 10)
    for _ in range(5):
        file.append(FRAME)
    file.close()
    assert imageio.imread(tmp_path / "episode.mp4").shape == (5, 48, 40, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["episode.mp4"]


ENCODERS = {
    "a full disk": ("echo No space left on device >&2; exit 1", "exit status 1.*No space left on device"),
    "a file that is not a video": ('for last; do true; done; cat > /dev/null; echo x > "$last"', "read again|frames"),
    "killed": ("kill -9 $$", "exit status -9"),
}


@pytest.mark.skipif(os.name == "nt", reason="needs a shell")
@pytest.mark.parametrize(("script", "message"), ENCODERS.values(), ids=ENCODERS)
def test_an_encoder_that_fails_is_an_error_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, message: str
) -> None:
    fake = tmp_path / "ffmpeg"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    real = imageio_ffmpeg.get_ffmpeg_exe()
    monkeypatch.setattr("diffpolicy.evaluation.encoder.imageio_ffmpeg.get_ffmpeg_exe", lambda: str(fake))
    folder = tmp_path / "videos"
    folder.mkdir()
    file = VideoFile(folder / "episode.mp4", 10)
    with pytest.raises(OSError, match=message):
        write(file, real, monkeypatch)
    assert list(folder.iterdir()) == []


def write(file: VideoFile, real: str, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        file.append(FRAME)
    finally:
        monkeypatch.setattr("diffpolicy.evaluation.encoder.imageio_ffmpeg.get_ffmpeg_exe", lambda: real)
        file.close()
