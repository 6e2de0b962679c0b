"""Benchmark samplers over step counts: python scripts/benchmark_samplers.py checkpoint=data/checkpoints/pusht_small

    python scripts/benchmark_samplers.py checkpoint=RUN/checkpoints/last 'samplers={ddim: [10, 5], heun: [10]}'

The installed command is `diffpolicy-benchmark-samplers`. Every line uses the same seeds. It reports score and success
with 95 % intervals, also minus those of the first line, the latency of a chunk for one robot, policy time per solved
episode, the steps of training, and the CPU time per sampler row without the network. Writes benchmark_samplers.json,
.csv, .md and .png.
"""

import statistics
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from tqdm import tqdm

from diffpolicy.benchmarks.files import write_rows
from diffpolicy.commands.command import command
from diffpolicy.commands.known import UNUSED
from diffpolicy.evaluation.evaluate import latency_ms, load_for_evaluation, report
from diffpolicy.evaluation.intervals import bootstrap_interval
from diffpolicy.evaluation.settings import EnvConfig, Episodes, InferenceBatch, Seed
from diffpolicy.policy.plan_projection import PlanProjection
from diffpolicy.policy.protocol import Policy
from diffpolicy.policy.sampling import sampled
from diffpolicy.system.device import choose_device
from diffpolicy.system.files import write_text
from diffpolicy.system.schema import Range, read_settings
from diffpolicy.system.shipped import CONFIGS
from diffpolicy.system.tables import Choice

NAME = "benchmark_samplers"
SAMPLER_FILES = CONFIGS / "sampler"
STUDY = {
    "ddpm": [100, 50, 20, 10, 5],
    "ddim": [100, 50, 20, 10, 5, 2, 1],
    "dpmpp_2m": [20, 10, 5],
    "unipc": [10, 5],
    "heun": [10],
}


@dataclass
class Contestant:
    """A policy to compare: its checkpoint and, for each sampler, the numbers of steps."""

    checkpoint: str
    samplers: dict[str, list[Annotated[int, Range(1, 10_000)]]] = field(default_factory=dict)


@dataclass
class BenchmarkSamplersConfig:
    """All settings of `benchmark_samplers.py`; see configs/benchmark_samplers.yaml."""

    checkpoint: str
    task: str | None = None
    env: EnvConfig | None = None  # set by the task; by default the checkpoint's
    trust_env: bool = False  # whether the checkpoint's env may name a module to import, which may run any code
    data: Any = field(default=None, metadata=UNUSED)
    diffusion: Any = field(default=None, metadata=UNUSED)
    encoder: Any = field(default=None, metadata=UNUSED)
    trainer: Any = field(default=None, metadata=UNUSED)
    window: Any = field(default=None, metadata=UNUSED)
    samplers: Any = None  # {name in configs/sampler: [steps, ...]}; Any, because hydra refuses new keys in a typed dict
    others: Any = None  # {label: {checkpoint: FOLDER, samplers: {...}}}
    episodes: Episodes = 200
    seed: Seed = 100_000
    inference_batch: InferenceBatch = 64
    latency_calls: Annotated[int, Range(1, 1_000_000)] = 50  # per sampler, in turns, before the episodes
    device: str = "auto"


@command(NAME, BenchmarkSamplersConfig)
def main(config: BenchmarkSamplersConfig, folder: Path) -> None:
    contestants = {"": Contestant(config.checkpoint, config.samplers or {})}
    contestants |= {
        label: read_settings(Contestant, one, f"others: {label}") for label, one in (config.others or {}).items()
    }
    loaded = {label: _load(one, config) for label, one in contestants.items()}  # reject bad settings first
    if len({str(policy.metadata.get("task")) for policy, *_ in loaded.values()}) > 1:
        raise ValueError("others: policies of different tasks cannot be compared")
    runs = [(label, *one[:2], sampler) for label, one in loaded.items() for sampler in one[2]]
    seeds = range(config.seed, config.seed + config.episodes)
    latencies = latency_ms([(policy, sampler) for _, policy, _, sampler in runs], config.latency_calls)
    reports: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for (label, policy, env, sampler), latency in zip(tqdm(runs, unit="sampler"), latencies, strict=True):
        measured = report(policy, env, sampler, seeds, config.inference_batch)
        costs = {"latency_ms": latency, "row_us": row_cost_us(policy, sampler), "training_steps": _trained(policy)}
        reports.append({"policy": label, **measured, **costs})
        rows = [row(one, reports[0]) for one in reports]  # this may take an hour, so each row is written at once
        write_rows(folder, NAME, {"config": asdict(config), "reports": reports}, rows)
        write_text(folder / f"{NAME}.md", markdown(rows))
    plot(rows, folder / f"{NAME}.png")
    print(f"{markdown(rows)}\n{folder / NAME}.json")


def _load(contestant: Contestant, config: BenchmarkSamplersConfig) -> tuple[Policy, EnvConfig, list[Choice]]:
    device = choose_device(config.device)
    policy, env = load_for_evaluation(contestant.checkpoint, config.task, config.env, device, config.trust_env)
    named = contestant.samplers or _study(policy)
    samplers = [_settings(name, steps) for name, counts in named.items() for steps in counts]
    for sampler in samplers:
        policy.sampling(sampler)
    return policy, env, samplers


def _trained(policy: Policy) -> int | None:
    """The optimiser steps in a policy, with those in its teacher; None if the checkpoint does not say."""
    own, teacher = policy.metadata.get("step"), policy.metadata.get("teacher", {"step": 0}).get("step")
    return None if own is None or teacher is None else own + teacher


def _study(policy: Policy) -> dict[str, list[int]]:
    """STUDY for a denoiser; for a policy of few steps, the sampler that it was trained for."""
    preferred = policy.sampling().settings
    return STUDY if preferred.name == "ddim" and preferred.steps > 1 else {preferred.name: [preferred.steps]}


def _settings(name: str, steps: int) -> dict[str, Any]:
    """The settings in configs/sampler/NAME.yaml, with another number of steps."""
    path = SAMPLER_FILES / f"{name}.yaml"
    if not path.exists():
        known = sorted(file.stem for file in SAMPLER_FILES.glob("*.yaml"))
        raise ValueError(f"sampler: {name!r} is unknown, expected one of {', '.join(known)}")
    content: Any = OmegaConf.to_container(OmegaConf.load(path))
    own = {key: value for key, value in content.items() if key != "defaults"}
    return {**own, "steps": steps}


def row_cost_us(policy: Policy, choice: Choice, repeats: int = 100) -> float:
    """CPU time per row without the network, in microseconds: the sampler's step and the clip to the data's limits."""
    sampler = policy.sampler(choice)
    noise = torch.randn(len(sampler) + 1, 1, *policy.codec.encoded_shape(policy.config.window.horizon))
    times: list[float] = []
    for _ in range(repeats):
        projection = PlanProjection(policy.codec, 0, None)
        with torch.inference_mode():
            start = time.process_time()
            sampled(lambda x, row: x, sampler, noise, projection)
        times.append(1e6 * (time.process_time() - start) / len(sampler))
    return statistics.median(times)


def row(report: dict[str, Any], reference: dict[str, Any]) -> dict[str, Any]:
    """One line of the table; a difference is the value minus the reference's on the same seeds (paired interval)."""
    pairs = [*zip(report["episodes"], reference["episodes"], strict=True)]
    differences = [own["score"] - other["score"] for own, other in pairs]
    successes = [float(own["success"]) - float(other["success"]) for own, other in pairs]
    name = report["sampler"]["name"]
    solved = sum(episode["success"] for episode in report["episodes"])
    chunks = sum(-(-episode["length"] // report["n_action_steps"]) for episode in report["episodes"])
    return {
        "policy": report["policy"],
        "sampler": f"{name} ({report['policy']})" if report["policy"] else name,
        "steps": report["steps"],
        "evaluations": report["evaluations"],
        "n_episodes": report["n_episodes"],
        **_with_interval("score", report["mean_score"], report["score_ci95"]),
        **_with_interval("difference", statistics.mean(differences), bootstrap_interval(differences)),
        **_with_interval("success", report["success_rate"], report["success_ci95"]),
        **_with_interval("success_difference", statistics.mean(successes), bootstrap_interval(successes)),
        "training_steps": report["training_steps"],
        **{f"latency_{key}_ms": value for key, value in report["latency_ms"].items()},
        "row_us": report["row_us"],
        "cost_per_solved_s": chunks * report["latency_ms"]["p50"] / 1e3 / solved if solved else float("inf"),
    }


def _with_interval(name: str, value: float, interval: tuple[float, float]) -> dict[str, float]:
    return {name: value, f"{name}_low": interval[0], f"{name}_high": interval[1]}


def markdown(rows: list[dict[str, Any]]) -> str:
    """The Markdown table in the layout of the README."""
    first = f"{rows[0]['sampler']}-{rows[0]['steps']}"
    lines = [
        f"| sampler | steps | evaluations | mean score | score minus {first} | success | success minus {first} "
        "| ms a chunk, p50 / p95 | policy s per solved episode | steps of training |",
        "|---" * 10 + "|",
    ]
    for r in rows:
        score = f"{r['score']:.3f} [{r['score_low']:.3f}, {r['score_high']:.3f}]"
        lost = f"{r['difference']:+.3f} [{r['difference_low']:+.3f}, {r['difference_high']:+.3f}]"
        success = f"{r['success']:.0%} [{r['success_low']:.0%}, {r['success_high']:.0%}]"
        missed = (
            f"{r['success_difference']:+.1%} [{r['success_difference_low']:+.1%}, {r['success_difference_high']:+.1%}]"
        )
        latency = f"{r['latency_p50_ms']:.1f} / {r['latency_p95_ms']:.1f}"
        name = f"{r['sampler']} | {r['steps']} | {r['evaluations']}"
        cost = f"{r['cost_per_solved_s']:.1f} | {'' if r['training_steps'] is None else r['training_steps']}"
        lines.append(f"| {name} | {score} | {lost} | {success} | {missed} | {latency} | {cost} |")
    return "\n".join(lines) + "\n"


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Plot score and success over the evaluations per chunk, and success over latency with its Pareto front."""
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    score, success, pareto = figure.subplots(1, 3)
    for axes, name, title in ((score, "score", "mean score"), (success, "success", "success rate")):
        _curves(axes, rows, name, "evaluations")
        axes.set(xlabel="network evaluations per chunk", ylabel=title)
    _curves(pareto, rows, "success", "latency_p50_ms")
    front = pareto_front(rows)
    pareto.plot([r["latency_p50_ms"] for r in front], [r["success"] for r in front], "k--", lw=1, label="Pareto front")
    pareto.set(xlabel="latency of a chunk, ms (p50)", ylabel="success rate")
    pareto.legend(fontsize=7, loc="lower right")
    figure.savefig(path, dpi=150)


def pareto_front(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows whose success rate no faster row reaches, fastest first."""
    front: list[dict[str, Any]] = []
    for r in sorted(rows, key=lambda r: (r["latency_p50_ms"], -r["success"])):
        if not front or r["success"] > front[-1]["success"]:
            front.append(r)
    return front


def _curves(axes: Axes, rows: list[dict[str, Any]], name: str, over: str) -> None:
    for sampler in dict.fromkeys(r["sampler"] for r in rows):
        own = sorted((r for r in rows if r["sampler"] == sampler), key=lambda r: r[over])
        values = [r[name] for r in own]
        errors = [[r[name] - r[f"{name}_low"] for r in own], [r[f"{name}_high"] - r[name] for r in own]]
        axes.errorbar([r[over] for r in own], values, yerr=errors, marker="o", ms=4, lw=1, capsize=2, label=sampler)
    axes.set(xscale="log", ylim=(0, 1.02))
    axes.grid(alpha=0.3)
