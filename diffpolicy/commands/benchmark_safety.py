"""Benchmark safety on executed motion: python scripts/benchmark_safety.py checkpoint=RUN/checkpoints/last

All methods use the same weights and seeds. Writes safety.json (`rows`), safety.csv, safety.md and safety.png.
"""

import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from tqdm import tqdm

from diffpolicy.benchmarks.files import write_rows
from diffpolicy.benchmarks.planning_time import WARM_UP, planning_times_ms
from diffpolicy.benchmarks.safety_methods import COMPARED, METHODS
from diffpolicy.benchmarks.safety_scenes import FAULTS, SCENES, Faulty, register_scene
from diffpolicy.benchmarks.safety_summary import Watch, summary
from diffpolicy.benchmarks.safety_table import markdown, plot
from diffpolicy.commands.command import command
from diffpolicy.evaluation.rollout import make_vector_env, rollout
from diffpolicy.evaluation.settings import EnvConfig, Episodes, InferenceBatch, Seed, Ticks
from diffpolicy.policy.diffusion import DiffusionPolicy
from diffpolicy.safety.build import build_safety
from diffpolicy.safety.settings import Safety
from diffpolicy.system.device import choose_device
from diffpolicy.system.files import write_text
from diffpolicy.system.schema import Range
from diffpolicy.system.tables import lookup

NAME = "safety"
UNTIMED: dict[str, float] = dict.fromkeys(
    ("latency_p50_ms", "latency_p95_ms", "latency_ratio", "latency_p95_ratio"), math.nan
)


@dataclass
class BenchmarkSafetyConfig:
    """All settings of `benchmark_safety.py`; see configs/benchmark_safety.yaml."""

    checkpoint: str
    scenes: list[str] = field(default_factory=lambda: ["random", "narrow_gap"])
    methods: list[str] | None = None
    faults: list[str] = field(default_factory=lambda: ["none"])
    sampler: Any = "ddim"
    episodes: Episodes = 200
    seed: Seed = 100_000
    inference_batch: InferenceBatch = 64
    latency_episodes: Annotated[int, Range(0, 1_000_000)] = 2
    max_ticks: Ticks | None = None
    device: str = "auto"


@command("benchmark_safety", BenchmarkSafetyConfig)
def main(config: BenchmarkSafetyConfig, folder: Path) -> None:
    policy = DiffusionPolicy.from_pretrained(config.checkpoint, choose_device(config.device))
    check_scenes(policy, config.scenes)
    methods = config.methods or list(COMPARED)
    runs = [(scene, fault, method) for scene in config.scenes for fault in config.faults for method in methods]
    for scene, fault, method in runs:  # reject unknown names before any work
        for kind, table, name in (("scene", SCENES, scene), ("fault", FAULTS, fault), ("method", METHODS, method)):
            lookup(table, kind, name)
    rows: list[dict[str, Any]] = []
    for run in tqdm(runs, unit="row"):  # this may take hours, so each row is written at once
        rows.append(measure(policy, config, *run))
        known = [{key: _or_none(value) for key, value in row.items()} for row in rows]
        write_rows(folder, NAME, {"config": asdict(config), "device": str(policy.device), "rows": known}, known)
        write_text(folder / f"{NAME}.md", markdown(rows))
    plot(rows, folder / f"{NAME}.png")
    print(f"{markdown(rows)}\n{folder / NAME}.json")


def _or_none(value: Any) -> Any:
    """Replace NaN, which JSON does not have, with None."""
    return None if isinstance(value, float) and math.isnan(value) else value


def check_scenes(policy: DiffusionPolicy, scenes: list[str]) -> None:
    """Raise ValueError if the policy was trained for a task other than that of a scene."""
    task = policy.metadata.get("task")
    for name in scenes:
        expected = "pusht" if "pusht" in name else "reach"
        if task is not None and not str(task).startswith(expected):
            raise ValueError(f"checkpoint: trained for task {task}, but scene {name} is for {expected}")


def measure(
    policy: DiffusionPolicy, config: BenchmarkSafetyConfig, scene: str, fault: str, method: str
) -> dict[str, Any]:
    """Run `episodes` episodes of a method in a scene with a fault; returns one row."""
    assumed = FAULTS[fault]
    safety = build_safety(replace(SCENES[scene].demands, **assumed))
    assert safety is not None
    env_config = register_scene(scene, fault, config.max_ticks)
    batch = min(config.inference_batch, config.episodes)
    controller = METHODS[method](policy, config.sampler, safety, batch)
    if fault != "none":
        bounds = float(assumed.get("position_error", 0.0)), float(assumed.get("velocity_error", 0.0))
        controller = Faulty(controller, fault, config.seed, bounds)
    watch = Watch(safety)
    env = make_vector_env(env_config, batch)
    try:
        seeds = range(config.seed, config.seed + config.episodes)
        episodes = rollout(controller, env, seeds, env_config.reset_options, on_tick=watch)
    finally:
        env.close()
    is_timed = fault == "none" and config.latency_episodes > 0
    latency = latency_ms(policy, config, env_config, safety, method) if is_timed else UNTIMED
    return {"scene": scene, "fault": fault, "method": method, **summary(episodes, watch), **latency}


def latency_ms(
    policy: DiffusionPolicy, config: BenchmarkSafetyConfig, env_config: EnvConfig, safety: Safety, method: str
) -> dict[str, float]:
    """Latency of a planning tick for one robot, in ms and as a ratio to no safety; measured in turns over episodes."""
    make = {"none": METHODS["none"], "method": METHODS[method]}
    controllers = {name: make[name](policy, config.sampler, safety, 1) for name in make}
    rounds = range(config.latency_episodes + WARM_UP)
    times = planning_times_ms(controllers, env_config, 1, config.seed, rounds)
    (p50, p95), plain = (np.percentile(times[name][:, 0], (50, 95)) for name in ("method", "none"))
    return dict(zip(UNTIMED, map(float, (p50, p95, p50 / plain[0], p95 / plain[1])), strict=True))
