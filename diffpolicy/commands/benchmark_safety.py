"""Safety, measured on executed motion: python scripts/benchmark_safety.py checkpoint=RUN/checkpoints/last

One set of weights and seeds for all methods. Writes safety.json (`rows`), safety.csv, safety.md and safety.png.
"""

import math
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from tqdm import tqdm

from diffpolicy.benchmarks.files import write_rows
from diffpolicy.benchmarks.planning_time import WARM_UP, planning_times_ms
from diffpolicy.benchmarks.safety_methods import COMPARED, METHODS
from diffpolicy.benchmarks.safety_scenes import FAULTS, SCENES, Faulty, register_scene
from diffpolicy.commands.command import command
from diffpolicy.evaluation.evaluate import check_evaluation
from diffpolicy.evaluation.intervals import wilson_interval
from diffpolicy.evaluation.monitor import EpisodeRecord, Monitor
from diffpolicy.evaluation.rollout import Episode, make_vector_env, rollout
from diffpolicy.evaluation.settings import EnvConfig
from diffpolicy.policy.build import lookup
from diffpolicy.policy.diffusion import DiffusionPolicy
from diffpolicy.policy.settings import SamplerConfig
from diffpolicy.safety.build import build_safety
from diffpolicy.safety.settings import Safety
from diffpolicy.system.device import choose_device
from diffpolicy.system.files import write_text
from diffpolicy.system.shipped import find_checkpoint

NAME = "safety"
UNTIMED: dict[str, float] = dict.fromkeys(
    ("latency_p50_ms", "latency_p95_ms", "latency_ratio", "latency_p95_ratio"), math.nan
)


@dataclass
class BenchmarkSafetyConfig:
    """Everything that `benchmark_safety.py` reads; see configs/benchmark_safety.yaml."""

    checkpoint: str
    scenes: list[str] = field(default_factory=lambda: ["random", "narrow_gap"])
    methods: list[str] | None = None
    faults: list[str] = field(default_factory=lambda: ["none"])
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    episodes: int = 200
    seed: int = 100_000
    inference_batch: int = 64
    latency_episodes: int = 2
    max_ticks: int | None = None
    device: str = "auto"


class Watch:
    """An `OnTick`: the monitor, and what the env itself reports of each episode."""

    def __init__(self, safety: Safety) -> None:
        self.monitor = Monitor(safety)
        self.contacts: Counter[int] = Counter()
        self.contacts_at_rest: Counter[int] = Counter()
        self.side: dict[int, int] = {}

    def __call__(self, episode: npt.NDArray[np.intp], before: Any, info: Any, action: Any, report: Any) -> None:
        self.monitor(episode, before, info, action, report)
        for env in np.flatnonzero(episode >= 0).tolist():
            index = int(episode[env])
            if "contact_substeps" in info:
                at_rest = int(info["contact_substeps_at_rest"][env])
                self.contacts[index] += int(info["contact_substeps"][env]) - at_rest
                self.contacts_at_rest[index] += at_rest
                self.side[index] = int(info["side"][env])


@command("benchmark_safety", BenchmarkSafetyConfig)
def main(config: BenchmarkSafetyConfig, folder: Path) -> None:
    check_evaluation(config.episodes, config.inference_batch)
    policy = DiffusionPolicy.from_pretrained(find_checkpoint(config.checkpoint), choose_device(config.device))
    check_scenes(policy, config.scenes)
    methods = config.methods or list(COMPARED)
    runs = [(scene, fault, method) for scene in config.scenes for fault in config.faults for method in methods]
    for scene, fault, method in runs:  # refuse what cannot be before any work
        for kind, table, name in (("scene", SCENES, scene), ("fault", FAULTS, fault), ("method", METHODS, method)):
            lookup(table, kind, name)
    rows: list[dict[str, Any]] = []
    for run in tqdm(runs, unit="row"):  # hours, perhaps: each row is written when it is there
        rows.append(measure(policy, config, *run))
        known = [{k: None if is_nan(v) else v for k, v in row.items()} for row in rows]  # JSON has no NaN
        write_rows(folder, NAME, {"config": asdict(config), "device": str(policy.device), "rows": known}, known)
        write_text(folder / f"{NAME}.md", markdown(rows))
    plot(rows, folder / f"{NAME}.png")
    print(f"{markdown(rows)}\n{folder / NAME}.json")


def check_scenes(policy: DiffusionPolicy, scenes: list[str]) -> None:
    """Raise ValueError where the policy was trained for another task than a scene's."""
    task = policy.metadata.get("task")
    for name in scenes:
        expected = "pusht" if "pusht" in name else "reach"
        if task is not None and not str(task).startswith(expected):
            raise ValueError(f"checkpoint: trained for task {task}, but scene {name} is of {expected}")


def measure(
    policy: DiffusionPolicy, config: BenchmarkSafetyConfig, scene: str, fault: str, method: str
) -> dict[str, Any]:
    """One row: `episodes` episodes of a method in a scene, with a fault."""
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


def summary(episodes: list[Episode], watch: Watch) -> dict[str, Any]:
    """Rates with 95 % intervals, over all executed sub-steps, certified or not."""
    records = [watch.monitor.records[i] for i in range(len(episodes))]
    bad = [r.violations > 0 or watch.contacts[i] > 0 for i, r in enumerate(records)]
    clear = [episode.success and not worse for episode, worse in zip(episodes, bad, strict=True)]
    safe = [good and record.over_limits == 0 for good, record in zip(clear, records, strict=True)]
    n, ticks = len(episodes), sum(record.ticks for record in records)
    low, high = wilson_interval(sum(safe), n)
    sides = [watch.side.get(i, 0) for i in range(n)]
    return {
        "episodes": n,
        "safe_success": sum(safe) / n,
        "safe_success_low": low,
        "safe_success_high": high,
        "clear_success": sum(clear) / n,
        "success": sum(episode.success for episode in episodes) / n,
        "score": float(np.mean([episode.score for episode in episodes])),
        "substeps": sum(record.substeps for record in records),
        "violations": sum(max(r.violations, watch.contacts[i]) for i, r in enumerate(records)),
        "over_limits": sum(record.over_limits for record in records),
        "violating_episodes": sum(bad),
        "violating_episodes_at_most": wilson_interval(sum(bad), n)[1] if any(bad) else min(1.0, 3.0 / n),
        "at_rest": sum(max(r.violations_at_rest, watch.contacts_at_rest[i]) for i, r in enumerate(records)),
        "deepest": max(record.deepest for record in records),
        "certified_rate": sum(record.certified for record in records) / ticks,
        "fallback_rate": sum(record.fallback for record in records) / ticks,
        "alarm_ticks": sum(record.alarm for record in records),
        "unchecked_ticks": sum(record.unchecked for record in records),
        "first_side": share([side > 0 for side in sides]),
        "first_side_safe": share([side > 0 for side, good in zip(sides, safe, strict=True) if good]),
        "mode_entropy": entropy(sides),
        "mode_entropy_safe": entropy([side for side, good in zip(sides, safe, strict=True) if good]),
        "path_length": float(np.mean([path_length(record) for record in records])),
        "jerk": float(np.mean([jerk(record) for record in records])),
    }


def is_nan(value: Any) -> bool:
    """Whether there is no number to tell."""
    return isinstance(value, float) and math.isnan(value)


def share(values: list[bool]) -> float:
    """Of those that are true; NaN of none."""
    return float(np.mean(values)) if values else math.nan


def entropy(sides: list[int]) -> float:
    """Of the choice of side, in bits."""
    shares = np.array([count for side, count in Counter(sides).items() if side]) / max(1, sum(s != 0 for s in sides))
    return float(-(shares * np.log2(shares)).sum()) + 0.0


def path_length(record: EpisodeRecord) -> float:
    """Of the executed motion, tick by tick."""
    return float(np.linalg.norm(np.diff(record.path, axis=0), axis=-1).sum()) if len(record.path) > 1 else 0.0


def jerk(record: EpisodeRecord) -> float:
    """Root mean square of the third difference of the executed positions, units per tick^3."""
    third = np.diff(record.path, n=3, axis=0) if len(record.path) > 3 else np.zeros((1, 2))
    return float(np.sqrt((third**2).sum(-1).mean()))


def latency_ms(
    policy: DiffusionPolicy, config: BenchmarkSafetyConfig, env_config: EnvConfig, safety: Safety, method: str
) -> dict[str, float]:
    """Milliseconds of a tick that plans, for one robot, and over no safety; in turns, over whole episodes."""
    make = {"none": METHODS["none"], "method": METHODS[method]}
    controllers = {name: make[name](policy, config.sampler, safety, 1) for name in make}
    rounds = range(config.latency_episodes + WARM_UP)
    times = planning_times_ms(controllers, env_config, 1, config.seed, rounds)
    (p50, p95), plain = (np.percentile(times[name][:, 0], (50, 95)) for name in ("method", "none"))
    return dict(zip(UNTIMED, map(float, (p50, p95, p50 / plain[0], p95 / plain[1])), strict=True))


COLUMNS = {
    "method": "{method}",
    "score": "{score:.3f}",
    "safe success": "{safe_success:.1%} [{safe_success_low:.1%}, {safe_success_high:.1%}]",
    "success without contact": "{clear_success:.1%}",
    "contact sub-steps": "{violations} of {substeps}",
    "over limits": "{over_limits}",
    "at rest": "{at_rest}",
    "episodes with contact": "{violating_episodes} (<= {violating_episodes_at_most:.2%})",
    "deepest, px": "{deepest:.1f}",
    "certified": "{certified_rate:.1%}",
    "fallback": "{fallback_rate:.1%}",
    "first side": "{first_side:.0%} / {first_side_safe:.0%}",
    "entropy, bits": "{mode_entropy:.2f} / {mode_entropy_safe:.2f}",
    "path, jerk": "{path_length:.0f}, {jerk:.2f}",
    "chunk p50, p95": "{latency}",
}
LATENCY = "{latency_ratio:.2f} x, {latency_p95_ratio:.2f} x"


def markdown(rows: list[dict[str, Any]]) -> str:
    """A table for each scene and fault."""
    parts: list[str] = []
    for scene, fault in dict.fromkeys((row["scene"], row["fault"]) for row in rows):
        parts += [f"**{scene}**" + (f", {fault}" if fault != "none" else ""), ""]
        parts += ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
        for row in rows:
            if (row["scene"], row["fault"]) == (scene, fault):
                latency = "" if math.isnan(row["latency_ratio"]) else LATENCY.format(**row)
                cells = (cell.format(**row, latency=latency) for cell in COLUMNS.values())
                parts.append("| " + " | ".join(cells) + " |")
        parts.append("")
    return "\n".join(parts)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Safe success over episodes with contact, a panel for each scene."""
    panels = list(dict.fromkeys((row["scene"], row["fault"]) for row in rows))
    figure = Figure(figsize=(5 * len(panels), 4.5), layout="constrained")
    for axes, (scene, fault) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for index, row in enumerate(r for r in rows if (r["scene"], r["fault"]) == (scene, fault)):
            marker = "o" if row["certified_rate"] > 0 else "x"
            x = 100 * row["violating_episodes"] / row["episodes"]
            axes.plot(x, 100 * row["safe_success"], marker, color=f"C{index % 10}", label=row["method"])
        axes.set(title=scene if fault == "none" else f"{scene}, {fault}", xlabel="episodes with contact, %")
        axes.set(ylabel="safe success, %", xlim=(-3, 103), ylim=(-3, 103))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    figure.savefig(path, dpi=150)
