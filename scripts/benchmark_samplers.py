"""Samplers over step counts: python scripts/benchmark_samplers.py checkpoint=data/checkpoints/pusht_small

The same seeds for every line; score and success with 95 % intervals, latency of a chunk for one robot. Writes
benchmark_samplers.json, .csv, .md and .png.
"""

import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmark_files import write_rows
from cli import command
from matplotlib.figure import Figure
from tqdm import tqdm

from diffpolicy.config import EnvConfig, SamplerConfig
from diffpolicy.device import choose_device
from diffpolicy.evaluation import check_evaluation, load_for_evaluation, report
from diffpolicy.files import write_text
from diffpolicy.intervals import bootstrap_interval

NAME = "benchmark_samplers"


@dataclass
class BenchmarkSamplersConfig:
    """Everything that `benchmark_samplers.py` reads; see configs/benchmark_samplers.yaml."""

    checkpoint: str
    task: str | None = None
    env: EnvConfig | None = None  # comes with the task; by default the checkpoint's
    data: Any = None  # comes with the task, not used
    samplers: dict[str, list[int]] = field(default_factory=dict)
    episodes: int = 100
    seed: int = 100_000
    inference_batch: int = 64
    device: str = "auto"


@command(NAME, BenchmarkSamplersConfig)
def main(config: BenchmarkSamplersConfig, folder: Path) -> None:
    samplers = [SamplerConfig(name, steps) for name, counts in config.samplers.items() for steps in counts]
    check_evaluation(config.episodes, config.inference_batch)
    if not samplers:
        raise ValueError("samplers: none given, expected e.g. samplers={ddim: [10, 5]}")
    policy, env = load_for_evaluation(config.checkpoint, config.task, config.env, choose_device(config.device))
    for sampler in samplers:
        policy.sampler(sampler)  # refuse what cannot be sampled before any work
    seeds = range(config.seed, config.seed + config.episodes)
    reports = [
        report(policy, env, sampler, seeds, config.inference_batch) for sampler in tqdm(samplers, unit="sampler")
    ]
    rows = [row(one, reports[0]) for one in reports]
    write_rows(folder, NAME, {"config": asdict(config), "reports": reports}, rows)
    write_text(folder / f"{NAME}.md", table := markdown(rows))
    plot(rows, folder / f"{NAME}.png")
    print(f"{table}\n{folder / NAME}.json")


def row(report: dict[str, Any], reference: dict[str, Any]) -> dict[str, Any]:
    """One line of the table; `difference` is to the reference's score on the same seeds, with a paired interval."""
    pairs = zip(report["episodes"], reference["episodes"], strict=True)
    differences = [own["score"] - other["score"] for own, other in pairs]
    return {
        "sampler": report["sampler"]["name"],
        "steps": report["steps"],
        "n_episodes": report["n_episodes"],
        **_with_interval("score", report["mean_score"], report["score_ci95"]),
        **_with_interval("difference", statistics.mean(differences), bootstrap_interval(differences)),
        **_with_interval("success", report["success_rate"], report["success_ci95"]),
        **{f"latency_{key}_ms": value for key, value in report["latency_ms"].items()},
    }


def _with_interval(name: str, value: float, interval: tuple[float, float]) -> dict[str, float]:
    return {name: value, f"{name}_low": interval[0], f"{name}_high": interval[1]}


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table as it stands in the README."""
    first = f"{rows[0]['sampler'].upper()}-{rows[0]['steps']}"
    lines = [
        f"| sampler | steps | mean score | score minus {first} | success | ms a chunk, p50 / p95 |",
        "|---" * 6 + "|",
    ]
    for r in rows:
        score = f"{r['score']:.3f} [{r['score_low']:.3f}, {r['score_high']:.3f}]"
        lost = f"{r['difference']:+.3f} [{r['difference_low']:+.3f}, {r['difference_high']:+.3f}]"
        success = f"{r['success']:.0%} [{r['success_low']:.0%}, {r['success_high']:.0%}]"
        latency = f"{r['latency_p50_ms']:.1f} / {r['latency_p95_ms']:.1f}"
        lines.append(f"| {r['sampler'].upper()} | {r['steps']} | {score} | {lost} | {success} | {latency} |")
    return "\n".join(lines) + "\n"


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Score and success over the number of steps, with their intervals."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    titles = {"score": "mean score", "success": "success rate"}
    for axes, (name, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
        for sampler in dict.fromkeys(r["sampler"] for r in rows):
            own = [r for r in rows if r["sampler"] == sampler]
            values = [r[name] for r in own]
            errors = [[r[name] - r[f"{name}_low"] for r in own], [r[f"{name}_high"] - r[name] for r in own]]
            axes.errorbar([r["steps"] for r in own], values, yerr=errors, marker="o", capsize=3, label=sampler.upper())
        axes.set(xscale="log", xlabel="network evaluations a chunk", ylabel=title, ylim=(0, 1.02))
        axes.set_xticks(ticks := sorted({r["steps"] for r in rows}), [str(tick) for tick in ticks], minor=False)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
