"""LeRobot itself opens what we write. It runs where lerobot is installed; docs/formats.md says how."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from diffpolicy.formats import convert, open_recording
from diffpolicy.formats.table import WriteSettings

pytestmark = pytest.mark.skipif(importlib.util.find_spec("lerobot") is None, reason="lerobot is not installed")
IMAGES = "observation.images.top"


def has_torchcodec() -> bool:
    try:
        importlib.import_module("torchcodec")
    except (ImportError, OSError, RuntimeError):  # it needs FFmpeg
        return False
    return True


@pytest.mark.parametrize("images", ["png", "video"])
def test_lerobot_reads_the_same_numbers(images: str, ours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    source = open_recording(str(ours), "zarr")
    folder = tmp_path / "out"
    leave_out = ["mask"] if images == "video" else []  # 8 x 8 pixels are too small for the encoder
    convert(source, folder, "lerobot", WriteSettings(fps=10, images=images), leave_out)
    backend = "torchcodec" if has_torchcodec() else "pyav"
    data = LeRobotDataset("local/ours", root=folder, video_backend=backend)
    assert (len(data), data.num_episodes, data.fps) == (source.n_steps, source.n_episodes, 10)
    written = open_recording(str(folder), "lerobot")
    for row in (0, 6, 7, 8, 30, 47):
        item = data[row]
        for key, name in {"action": "action", "state": "observation.state", "grid": "observation.grid"}.items():
            expected = source.take(key, np.array([row]))[0].astype(np.float32)  # LeRobot returns all as float32
            np.testing.assert_array_equal(item[name].numpy(), expected)
        assert item["observation.count"].item() == source["count"][row]
        pixels = item[IMAGES].permute(1, 2, 0).numpy() * 255
        # Both decode the same frames; libraries may round the colours of a video differently.
        loss = np.abs(pixels - written.take("obs/top", np.array([row]))[0])
        assert loss.max() <= (0 if images == "png" else 3) + 1e-3
        assert item["task"] == source.episode_attributes[item["episode_index"].item()]["tasks"][0]
    mean = data.meta.stats["observation.state"]["mean"]
    np.testing.assert_allclose(mean, source["state"].mean(0), rtol=1e-9, atol=1e-12)


def test_lerobot_samples_windows_of_a_video(ours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    convert(
        open_recording(str(ours), "zarr"), tmp_path / "out", "lerobot", WriteSettings(fps=10, images="video"), ["mask"]
    )
    backend = "torchcodec" if has_torchcodec() else "pyav"
    deltas = {IMAGES: [-0.1, 0.0], "action": [0.1 * i for i in range(4)]}
    data = LeRobotDataset("local/ours", root=tmp_path / "out", delta_timestamps=deltas, video_backend=backend)
    item = data[20]
    assert tuple(item[IMAGES].shape) == (2, 3, 64, 64)
    assert tuple(item["action"].shape) == (4, 2)
    assert (item[IMAGES][0] != item[IMAGES][1]).any()
