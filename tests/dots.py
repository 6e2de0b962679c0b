"""Runs on images: demonstrations of a bright dot, and the settings of short runs whose encoder crops and is taught."""

from pathlib import Path
from typing import Any

import numpy as np
import walk

from diffpolicy.data.replay_buffer import ReplayBuffer
from diffpolicy.training.settings import DataConfig, TrainConfig

ENCODER = {"name": "resnet18_narrow", "brightness": 0.2, "pool": "average"}


def record(path: Path) -> Path:
    """Six episodes of a bright dot that moves along a line; the action is its next place."""
    arrays = {"action": ((1,), "float32"), "camera": ((24, 24, 3), "uint8"), "dot": ((1,), "float32")}
    buffer = ReplayBuffer.create(path, {**arrays, "state": ((2,), "float32")})
    generator = np.random.default_rng(0)
    for _ in range(6):
        dot = np.linspace(*generator.uniform(0.0, 23.0, size=2), 11)
        camera = np.zeros((10, 24, 24, 3), dtype=np.uint8)
        camera[np.arange(10), 12, dot[:-1].round().astype(int)] = 255
        state = generator.normal(size=(10, 2)).astype("float32")
        columns = dot.astype("float32")[:, None]
        buffer.append_episode({"action": columns[1:], "camera": camera, "dot": columns[:-1], "state": state})
    return path


def settings(data: Path, auxiliary: Any = None, **changes: Any) -> TrainConfig:
    seen = {"camera": ["camera"], "state": ["state"]}
    config = DataConfig(
        str(data), observations=seen, images={"camera": {}}, auxiliary=auxiliary, validation_fraction=0.2
    )
    short = {"steps": 8, "batch_size": 8, "checkpoint_every": 4, "validate_every": 4}
    short |= changes.pop("trainer", {})
    return walk.settings(data, data=config, encoder=ENCODER, trainer=short, **changes)
