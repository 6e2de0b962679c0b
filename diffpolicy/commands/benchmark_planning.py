"""Benchmark the cost of safety per plan: python scripts/benchmark_planning.py checkpoint=RUN/checkpoints/last

Controllers with and without safety drive the same episodes in turns. Writes benchmark_planning.json, .csv and .md.
"""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from tqdm import tqdm

from diffpolicy.benchmarks.files import write_rows
from diffpolicy.benchmarks.planning_time import WARM_UP, planning_times_ms
from diffpolicy.benchmarks.safety_scenes import SCENES, register_scene
from diffpolicy.commands.command import command
from diffpolicy.control.controller import PolicyController
from diffpolicy.evaluation.settings import Episodes, InferenceBatch, Seed, Ticks
from diffpolicy.policy.diffusion import DiffusionPolicy
from diffpolicy.safety.build import Candidates, build_safety
from diffpolicy.safety.settings import Safety
from diffpolicy.system.device import choose_device
from diffpolicy.system.files import write_text
from diffpolicy.system.schema import Count
from diffpolicy.system.tables import lookup

NAME = "benchmark_planning"


@dataclass
class BenchmarkPlanningConfig:
    """All settings of `benchmark_planning.py`; see configs/benchmark_planning.yaml."""

    checkpoint: str
    scene: str = "narrow_gap"
    modes: list[str] = field(default_factory=lambda: ["last", "last_half", "every_step"])
    candidates: Annotated[list[Candidates], Count(1, 64)] = field(default_factory=lambda: [1, 4, 8])
    batches: Annotated[list[InferenceBatch], Count(1, 64)] = field(default_factory=lambda: [1, 64])
    sampler: Any = "ddim"
    episodes: Episodes = 6
    max_ticks: Ticks | None = None
    seed: Seed = 60_000
    device: str = "auto"


@command(NAME, BenchmarkPlanningConfig)
def main(config: BenchmarkPlanningConfig, folder: Path) -> None:
    demands = lookup(SCENES, "scene", config.scene).demands
    policy = DiffusionPolicy.from_pretrained(config.checkpoint, choose_device(config.device))
    safety = build_safety(demands)
    assert safety is not None
    rows = [one for batch in config.batches for one in measure(policy, safety, config, batch)]
    write_rows(folder, NAME, {"config": asdict(config), "device": str(policy.device), "rows": rows}, rows)
    write_text(folder / f"{NAME}.md", table := markdown(rows))
    print(f"{table}\n{folder / NAME}.json")


def measure(
    policy: DiffusionPolicy, safety: Safety, config: BenchmarkPlanningConfig, batch: int
) -> list[dict[str, Any]]:
    """One row without safety and one for each mode and K, for `batch` robots that plan in the same tick."""
    sampler = policy.sampler(config.sampler)
    controllers = {("none", 1): PolicyController(policy, sampler)}
    for mode in config.modes:
        for k in config.candidates:
            controllers[mode, k] = PolicyController(policy, sampler, safety=replace(safety, mode=mode, candidates=k))
    env_config = register_scene(config.scene, "none", config.max_ticks)
    rounds = tqdm(range(WARM_UP + config.episodes), unit="episode", desc=f"batch {batch}")
    times = planning_times_ms(controllers, env_config, batch, config.seed, rounds)
    plain = np.median(times["none", 1], axis=0)
    return [row(batch, mode, k, taken, plain) for (mode, k), taken in times.items()]


def row(batch: int, mode: str, k: int, times: Any, plain: Any) -> dict[str, Any]:
    """One row from times [ticks, 2] (wall, CPU), with their ratios to the medians without safety [2]."""
    p50, p95 = (float(found) for found in np.percentile(times[:, 0], (50, 95)))
    ratio, cpu_ratio = (float(found) for found in np.median(times, axis=0) / plain)
    return {
        "batch": batch, "mode": mode, "candidates": k, "p50_ms": p50, "p95_ms": p95, "ratio": ratio,
        "cpu_ratio": cpu_ratio,
    }  # fmt: skip


def markdown(rows: list[dict[str, Any]]) -> str:
    """A Markdown table with one line per row."""
    lines = ["| batch | mode | K | p50, ms | p95, ms | over none | CPU time over none |", "|---" * 7 + "|"]
    cells = "| {batch} | {mode} | {candidates} | {p50_ms:.1f} | {p95_ms:.1f} | {ratio:.2f} | {cpu_ratio:.2f} |"
    return "\n".join([*lines, *(cells.format(**one) for one in rows), ""])
