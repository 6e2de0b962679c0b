"""The fixtures, and a small data set in our own layout."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from diffpolicy.data.replay_buffer import ReplayBuffer

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture
def fixture_copy(tmp_path: Path):
    """Copies a fixture, so that a test may damage it."""

    def copy(name: str) -> Path:
        source, target = FIXTURES / name, tmp_path / "copy" / name
        target.parent.mkdir(exist_ok=True)
        return Path(shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target))

    return copy


@pytest.fixture(scope="session")
def ours(tmp_path_factory) -> Path:
    """Three episodes with arrays of several types and shapes, and images."""
    path = tmp_path_factory.mktemp("ours") / "ours.zarr"
    generator = np.random.default_rng(0)
    specs = {
        "action": ((2,), "float32"),
        "state": ((3,), "float64"),
        "grid": ((2, 3), "float32"),
        "count": ((), "int64"),
        "flag": ((1,), "bool"),
        "obs/top": ((64, 64, 3), "uint8"),
        "mask": ((8, 8, 1), "uint8"),
    }
    buffer = ReplayBuffer.create(path, specs)
    ramp = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint8)
    for index, length in enumerate([7, 1, 40]):
        arrays = {
            key: generator.normal(size=(length, *row)).astype(dtype)
            if np.dtype(dtype).kind == "f"
            else generator.integers(0, 2 if dtype == "bool" else 200, (length, *row)).astype(dtype)
            for key, (row, dtype) in specs.items()
        }
        shifts = np.arange(length, dtype=np.uint8)[:, None, None]
        arrays["obs/top"] = np.stack([ramp + shifts, ramp[::-1] + 0 * shifts, ramp // 2 + 60 * shifts * 0], axis=-1)
        buffer.append_episode(arrays, {"seed": index, "tasks": [f"task {index % 2}"]})
    return path
