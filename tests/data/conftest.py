"""A small recorded buffer that the data tests share."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from diffpolicy.data.replay_buffer import ReplayBuffer

SPECS = {"action": ((2,), "float32"), "state": ((3,), "float32"), "count": ((), "int64")}


def episode(length: int, tag: int) -> dict[str, np.ndarray]:
    """Arrays in which every number identifies its episode and step."""
    step = np.arange(length)
    return {
        "action": np.stack([step, np.full(length, tag)], axis=1).astype(np.float32),
        "state": (step[:, None] + 100 * tag + np.array([0.25, 0.5, 0.75])).astype(np.float32),
        "count": step + 1000 * tag,
    }


@pytest.fixture
def make_episode():
    return episode


@pytest.fixture(scope="session")
def recorded_once(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("recorded") / "recorded.zarr"
    buffer = ReplayBuffer.create(path, SPECS)
    for tag, length in enumerate([4, 1, 6]):
        buffer.append_episode(episode(length, tag), {"seed": tag})
    return path


@pytest.fixture
def recorded(recorded_once: Path, tmp_path: Path) -> Path:
    """A directory with three episodes of 4, 1 and 6 steps and attributes {"seed": i}; a new one for each test."""
    return Path(shutil.copytree(recorded_once, tmp_path / "recorded.zarr"))
