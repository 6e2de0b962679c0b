"""Benchmark optimiser steps per second against a plain loop: python scripts/benchmark_training.py

The plain loop is what most codebases run: DataLoader workers that cut windows one by one, the convolutions and norms of
torch, the scheduler of diffusers, and an average updated parameter by parameter. All contestants use the same network,
data and batch size. With a task that sees, the workers also crop each image and make it float, and the images a second
are told. Each runs in its own child process; they alternate block by block. Writes benchmark_training.json,
.csv and .png.
"""

import statistics
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import torch

from diffpolicy.benchmarks import training_worker
from diffpolicy.benchmarks.child import Child, Threads
from diffpolicy.benchmarks.figures import plot_blocks
from diffpolicy.benchmarks.files import with_range, write_rows
from diffpolicy.commands.command import command
from diffpolicy.system.schema import Count, Range
from diffpolicy.system.tables import lookup

WORKER = Path(training_worker.__file__)
OURS = "diffpolicy"
MODELS = {
    "unet_small": ["model=unet_small"],
    "unet_medium": ["model.widths=[64,128,256]", "window.horizon=16"],
    "unet": ["model=unet", "window.horizon=16"],  # 65.8 M parameters
    "transformer_small": ["model=transformer_small"],
    "dit_small": ["model=dit_small"],
}


@dataclass
class BenchmarkTrainingConfig:
    """All settings of `benchmark_training.py`; see configs/benchmark_training.yaml."""

    models: Annotated[list[str], Count(1, 64)] = field(default_factory=list)
    contestants: list[str] = field(default_factory=list)
    settings: list[str] = field(default_factory=list)
    threads: Annotated[list[Threads], Count(1, 64)] = field(default_factory=list)
    workers: Annotated[int, Range(0, 256)] = 2
    blocks: Annotated[int, Range(2, 1000)] = 5
    steps_per_block: Annotated[int, Range(1, 1_000_000)] = 10


@command("benchmark_training", BenchmarkTrainingConfig)
def main(config: BenchmarkTrainingConfig, folder: Path) -> None:
    if OURS not in config.contestants:
        raise ValueError(f"contestants: {config.contestants} must name {OURS}, which the others are compared with")
    for model in config.models:
        lookup(MODELS, "model", model)
    rows = [row for model in config.models for threads in config.threads for row in measure(config, model, threads)]
    lines = summarise(rows)
    document = {"config": asdict(config), "torch": torch.__version__, "summary": lines, "blocks": rows}
    write_rows(folder, "benchmark_training", document, rows)
    plot(rows, folder / "benchmark_training.png")
    for line in lines:
        print(
            f"{line['model']:<12} {line['threads']} threads  {line['name']:<19} "
            f"{line['steps_per_second']:>7.2f} steps/s, {line['images_per_second']:.0f} images/s; "
            f"ours is {line['ratio']:.2f} [{line['ratio_lowest']:.2f}, {line['ratio_highest']:.2f}] times as fast, "
            f"by CPU time {line['cpu_ratio']:.2f} [{line['cpu_ratio_lowest']:.2f}, {line['cpu_ratio_highest']:.2f}]"
        )
    print(folder / "benchmark_training.json")


def measure(config: BenchmarkTrainingConfig, model: str, threads: int) -> list[dict]:
    """One row per counted block and contestant."""
    rows, children = [], list[Child]()
    settings = [*config.settings, *lookup(MODELS, "model", model)]
    try:
        for name in config.contestants:
            children.append(Child(sys.executable, WORKER, [name, str(threads), str(config.workers), *settings]))
        for block in range(config.blocks):
            for child in children if block % 2 == 0 else children[::-1]:
                answer = child.ask({"steps": config.steps_per_block})
                if block > 0:
                    rows.append({"model": model, "threads": threads, "block": block, "name": child.name, **answer})
    finally:
        for child in children:
            child.close()
    return rows


def summarise(rows: list[dict]) -> list[dict]:
    """Per model, threads and contestant: median steps and images per second, and our speed-up in the same block.

    With one thread, CPU time depends less than wall time on what else the machine does.
    """
    found = {(row["model"], row["threads"], row["name"], row["block"]): row for row in rows}
    lines = []
    for model, threads, name in dict.fromkeys(key[:3] for key in found):
        pairs = [
            (row, found[model, threads, OURS, block])
            for (*kind, block), row in found.items()
            if kind == [model, threads, name]
        ]
        line = {"model": model, "threads": threads, "name": name}
        line["steps_per_second"] = 1.0 / statistics.median(row["seconds"] for row, _ in pairs)
        line["images_per_second"] = pairs[0][0]["images"] * line["steps_per_second"]
        for key, prefix in (("seconds", "ratio"), ("cpu_seconds", "cpu_ratio")):
            line |= with_range(prefix, [row[key] / ours[key] for row, ours in pairs])
        lines.append(line)
    return lines


def plot(rows: list[dict], path: Path) -> None:
    """Plot steps per second, with blocks as points."""
    rates: dict[str, list[float]] = {}
    for row in rows:
        rates.setdefault(f"{row['model']}, {row['threads']} threads, {row['name']}", []).append(1.0 / row["seconds"])
    plot_blocks(rates, path, "optimiser steps per second", [name for name in rates if name.endswith(f" {OURS}")])
