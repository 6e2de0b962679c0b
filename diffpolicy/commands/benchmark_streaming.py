"""Benchmark the rate and memory of reading image batches from disk: python scripts/benchmark_streaming.py

Nothing is trained: batches are consumed as fast as they arrive. Writes benchmark_streaming.json and .csv.
"""

import multiprocessing
import os
import time
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import zarr

from diffpolicy.benchmarks.files import with_range, write_rows
from diffpolicy.commands.command import command
from diffpolicy.data.demonstrations import load_demonstrations
from diffpolicy.data.locate import find_data_set
from diffpolicy.data.replay_buffer import ReplayBuffer
from diffpolicy.data.store import open_root
from diffpolicy.data.windows import window_indices
from diffpolicy.policy.settings import WindowConfig
from diffpolicy.system.pixels import PixelFormat
from diffpolicy.system.schema import Count, Range
from diffpolicy.training.batches import WindowBatches
from diffpolicy.training.read_ahead import AHEAD

EPISODE = 500
SIZE = 96


@dataclass
class BenchmarkStreamingConfig:
    """All settings of `benchmark_streaming.py`; see configs/benchmark_streaming.yaml."""

    data: str | None = None
    images: Annotated[int, Range(EPISODE, 10_000_000)] = 4000
    workers: Annotated[list[Annotated[int, Range(0, 256)]], Count(1, 64)] = field(default_factory=lambda: [0, 1, 2, 4])
    batch_size: Annotated[int, Range(1, 2**20)] = 256
    resident: bool = False
    rounds: Annotated[int, Range(1, 1000)] = 3
    batches_per_round: Annotated[int, Range(1, 1_000_000)] = 10


@command("benchmark_streaming", BenchmarkStreamingConfig)
def main(config: BenchmarkStreamingConfig, folder: Path) -> None:
    path = Path(find_data_set(config.data)) if config.data else make_images(folder / "images.zarr", config.images)
    rows = [measure(path, config, workers) for _ in range(config.rounds) for workers in config.workers]
    lines = [summarise(rows, workers) for workers in config.workers]
    amplification = decoded_per_used(path, config.batch_size)
    document = {"config": asdict(config), "decoded_per_used": amplification, "summary": lines, "rounds": rows}
    write_rows(folder, "benchmark_streaming", document, rows)
    print(f"{amplification:.1f} images decoded per image used")
    for line in lines:
        low, high = line["batches_per_second_lowest"], line["batches_per_second_highest"]
        print(
            f"{line['workers']} workers  {line['batches_per_second']:>6.2f} batches/s [{low:.2f}, {high:.2f}]  "
            f"{line['memory_mb']:.0f} MB of memory"
        )
    print(folder / "benchmark_streaming.json")


def make_images(path: Path, images: int) -> Path:
    """Record a data set of noisy waves, which compress as badly as camera images; returns `path`."""
    generator = np.random.default_rng(0)
    specs = {"action": ((2,), "float32"), "image": ((SIZE, SIZE, 3), "uint8")}
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = ReplayBuffer.create(path, specs)
    across = np.linspace(0.0, 4.0, SIZE)
    for _ in range(images // EPISODE):
        phase = np.arange(EPISODE)[:, None, None, None] / 50 + generator.uniform(0, 6, 3)
        waves = 128 + 60 * np.sin(across[:, None, None] + across[:, None] / 2 + phase)
        noisy = waves + generator.integers(-8, 9, size=waves.shape)
        action = generator.normal(size=(EPISODE, 2)).astype("float32")
        buffer.append_episode({"action": action, "image": noisy.astype("uint8")})
    return path


def measure(path: Path, config: BenchmarkStreamingConfig, workers: int) -> dict[str, float]:
    """One round: batches per second once the workers are running, and the peak memory of all processes in MB."""
    streamed = [] if config.resident else ["image"]
    data = load_demonstrations(path, {"image": ["image"]}, stream=streamed, images={"image": PixelFormat()})
    window, device = WindowConfig(), torch.device("cpu")
    with closing(
        WindowBatches(data, np.arange(data.n_episodes), window, config.batch_size, 0, device, workers)
    ) as batches:
        begun = 1 + 2 * AHEAD * workers  # skip what was read while the processes started
        for step in range(begun):
            batches.batch(step)
        memory, start = 0.0, time.perf_counter()
        for step in range(begun, begun + config.batches_per_round):
            batches.batch(step)
            memory = max(memory, memory_mb())
        rate = config.batches_per_round / (time.perf_counter() - start)
    return {"workers": workers, "batches_per_second": rate, "memory_mb": memory}


def memory_mb() -> float:
    """Memory of this process and its workers in MB, with shared memory counted once; NaN if the system has no smaps."""
    total = 0.0
    for pid in (os.getpid(), *(child.pid for child in multiprocessing.active_children())):
        rollup = Path(f"/proc/{pid}/smaps_rollup")
        if not rollup.exists():
            return float("nan")
        total += next(int(line.split()[1]) for line in rollup.read_text().splitlines() if line.startswith("Pss:")) / 1e3
    return total


def summarise(rows: list[dict[str, float]], workers: int) -> dict[str, float]:
    """The rounds with this number of workers: median and range of batches per second, and peak memory in MB."""
    own = [row for row in rows if row["workers"] == workers]
    rates = with_range("batches_per_second", [row["batches_per_second"] for row in own])
    return {"workers": workers, **rates, "memory_mb": max(row["memory_mb"] for row in own)}


def decoded_per_used(path: Path, batch_size: int, draws: int = 20) -> float:
    """Images in the chunks that a batch touches, divided by the distinct images in the batch."""
    image: zarr.Array = open_root(path)["data/image"]  # type: ignore[assignment]
    buffer, window, generator = ReplayBuffer.open(path), WindowConfig(), np.random.default_rng(0)
    index = window_indices(buffer.episode_ends, window.horizon, window.n_obs_steps - 1, window.n_action_steps - 1)
    drawn = [np.unique(generator.choice(index[:, : window.n_obs_steps], batch_size)) for _ in range(draws)]
    decoded = sum(len(np.unique(rows // image.chunks[0])) * image.chunks[0] for rows in drawn)
    return decoded / sum(map(len, drawn))
