"""The published Push-T demonstrations; skipped where the folder named by DIFFPOLICY_DATA does not hold them."""

import os
import time
from pathlib import Path

import numpy as np
import pytest

from diffpolicy.data.demonstrations import load_demonstrations
from diffpolicy.data.locate import DOWNLOADS, checksum, find_data_set
from diffpolicy.data.replay_buffer import ReplayBuffer
from diffpolicy.data.windows import window_indices

NAME = "pusht_human/pusht_cchi_v7_replay.zarr"
PATH = Path(os.environ.get("DIFFPOLICY_DATA") or "/nowhere") / NAME
pytestmark = pytest.mark.skipif(not PATH.exists(), reason=f"{NAME} is not in $DIFFPOLICY_DATA")


def test_is_found_by_name_and_has_the_recorded_checksum():
    assert find_data_set(NAME) == str(PATH)
    assert checksum(PATH, DOWNLOADS[NAME].keys) == DOWNLOADS[NAME].sha256


def test_has_the_published_episodes_and_opens_without_reading_images():
    start = time.process_time()
    buffer = ReplayBuffer.open(PATH)
    assert time.process_time() - start < 2  # decoding the images takes far longer, and 2.8 GB
    assert (buffer.n_episodes, buffer.n_steps) == (206, 25650)
    assert buffer.specs["img"] == ((96, 96, 3), np.dtype("float32"))
    lengths = np.diff(buffer.episode_ends, prepend=0)
    assert (lengths.min(), np.median(lengths), lengths.max()) == (49, 122, 246)


def test_observations_are_nine_keypoints_and_the_agent():
    human = load_demonstrations(PATH, {"keypoints": ["keypoint", "state[:2]"]})
    buffer = ReplayBuffer.open(PATH)
    assert tuple(human.actions.shape) == (25650, 2)
    assert tuple(human.observations["keypoints"].shape) == (25650, 20)
    np.testing.assert_array_equal(human.observations["keypoints"][:, :18], buffer["keypoint"].reshape(-1, 18))
    np.testing.assert_array_equal(human.observations["keypoints"][:, 18:], buffer["state"][:, :2])


def test_gives_the_published_number_of_training_windows():
    """Horizon 16, 2 observations, 8 actions: L - 16 + 1 + 7 + 1 windows per episode (no episode is shorter)."""
    windows = window_indices(ReplayBuffer.open(PATH).episode_ends, 16, pad_before=1, pad_after=7)
    assert windows.shape == (25650 - 206 * 7, 16)


def test_its_low_dimensional_part_packs_small_and_unchanged(tmp_path):
    human = ReplayBuffer.open(PATH)
    keys = list(DOWNLOADS[NAME].keys)
    human.copy(tmp_path / "low.zarr", keys=keys)
    ReplayBuffer.open(tmp_path / "low.zarr").pack(tmp_path / "low.zarr.zip")
    assert (tmp_path / "low.zarr.zip").stat().st_size < 1_200_000  # 2.7 MB of numbers
    assert checksum(tmp_path / "low.zarr.zip", DOWNLOADS[NAME].keys) == DOWNLOADS[NAME].sha256
