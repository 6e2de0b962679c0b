"""A task that trains in a second (a point walks to its goal), in this process or in a child that can be killed."""

import dataclasses
import multiprocessing
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import torch

from diffpolicy.data.replay_buffer import ReplayBuffer
from diffpolicy.networks.backbones.unet1d import UNet1dConfig
from diffpolicy.system import checkpoint
from diffpolicy.training.settings import DataConfig, TrainConfig, TrainerConfig
from diffpolicy.training.trainer import Trainer

METHODS = multiprocessing.get_all_start_methods()  # no forkserver on Windows
# The fork server has torch loaded, so that a process starts quickly.
CONTEXT = multiprocessing.get_context("forkserver" if "forkserver" in METHODS else "spawn")
CONTEXT.set_forkserver_preload(
    ["diffpolicy.training.trainer", "diffpolicy_envs", "hydra", "matplotlib.backends.backend_agg", "matplotlib.figure"]
)
PATIENCE_S = 300.0  # the machine may be busy; only a hang takes this long


def record(path: Path) -> Path:
    """Record ten episodes whose action is the next position; returns `path`."""
    buffer = ReplayBuffer.create(path, {"action": ((1,), "float32"), "state": ((2,), "float32")})
    generator = np.random.default_rng(0)
    for _ in range(10):
        start, goal = generator.uniform(-1, 1, size=2)
        position = np.linspace(start, goal, 21)
        state = np.stack([position[:-1], np.full(20, goal)], axis=1)
        buffer.append_episode({"action": position[1:, None].astype("float32"), "state": state.astype("float32")})
    return path


def settings(data_set: Path, **changes) -> TrainConfig:
    short = {
        "steps": 24,
        "batch_size": 32,
        "warmup_steps": 4,
        "log_every": 4,
        "validate_every": 8,
        "checkpoint_every": 8,
    }
    config = TrainConfig(
        task="walk",
        data=DataConfig(str(data_set), observations={"state": ["state"]}, validation_fraction=0.2),
        model=UNet1dConfig(widths=[8, 16], time_embedding_dim=8),
        trainer=TrainerConfig(**{**short, **changes.pop("trainer", {})}),
        device="cpu",
    )
    return dataclasses.replace(config, **changes)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of the checkpoint in `folder`."""
    return {**checkpoint.read_tensors(folder, "model"), **checkpoint.read_tensors(folder, "training_state")}


def start(config: TrainConfig, folder: Path, file_bytes: int | None = None, wait_at: int | None = None) -> BaseProcess:
    """Train in another process, whose files cannot exceed `file_bytes`; what it raises goes to FOLDER/../error.

    At step `wait_at` it waits until FOLDER/../go exists: so it is not done before a signal reaches it.
    """
    process = CONTEXT.Process(target=_train, args=(config, folder, file_bytes, wait_at))
    process.start()
    return process


def wait_for(condition: Callable[[], bool], is_alive: Callable[[], bool]) -> None:
    """Wait until `condition` holds or the process has ended."""
    end = time.monotonic() + PATIENCE_S
    while not condition() and is_alive():
        assert time.monotonic() < end, "nothing happens"
        time.sleep(0.001)


def logged_steps(folder: Path) -> int:
    """The number of rows with a loss in the metrics, which is the number of steps in a run that logs every step."""
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b'"loss"') if path.exists() else 0


def _train(config: TrainConfig, folder: Path, file_bytes: int | None, wait_at: int | None = None) -> None:
    torch.set_num_threads(1)
    if file_bytes is not None:
        import resource  # not on Windows

        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    try:
        trainer = Trainer(config, folder)
        train_step = trainer.train_step

        def waiting_step() -> tuple[torch.Tensor, torch.Tensor]:
            if trainer.step == wait_at:
                wait_for((folder.parent / "go").exists, lambda: True)
            return train_step()

        trainer.train_step = waiting_step
        stopped = trainer.run()
    except Exception as error:
        (folder.parent / "error").write_text(f"{type(error).__name__}: {error}")
        sys.exit(1)
    sys.exit(128 + stopped if stopped else 0)
