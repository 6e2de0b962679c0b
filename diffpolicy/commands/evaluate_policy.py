"""Evaluate a checkpoint: python scripts/evaluate_policy.py checkpoint=RUN/checkpoints/last episodes=50

    python scripts/evaluate_policy.py checkpoint=data/checkpoints/pusht_small sampler=dpmpp_2m sampler.steps=5
    python scripts/evaluate_policy.py checkpoint=RUN/checkpoints/last safety=last safety.max_speed=300
    torchrun --nproc-per-node 2 scripts/evaluate_policy.py checkpoint=RUN/checkpoints/last hydra.run.dir=DIR

The installed command is `diffpolicy-evaluate`. The checkpoint stores its env. Writes results.json and videos/ into the
run folder, by default outputs/evaluate/TIME.
"""

import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from diffpolicy.commands.command import command
from diffpolicy.commands.known import UNUSED
from diffpolicy.evaluation.env_check import check_env, why_not_drawn
from diffpolicy.evaluation.evaluate import latency_ms, load_for_evaluation, record_videos, report
from diffpolicy.evaluation.settings import EnvConfig, Episodes, InferenceBatch, Seed
from diffpolicy.safety.build import SafetyConfig, build_safety
from diffpolicy.system.distributed import joined
from diffpolicy.system.files import write_text
from diffpolicy.system.schema import Range
from diffpolicy.system.time_limits import LimitsConfig

LATENCY_CALLS = 100


@dataclass
class EvaluateConfig:
    """All settings of `evaluate_policy.py`; see configs/evaluate.yaml."""

    checkpoint: str
    task: str | None = None  # if given, a checkpoint of another task is refused
    env: EnvConfig | None = None  # set by the task; by default the checkpoint's
    trust_env: bool = False  # whether the checkpoint's env may name a module to import, which may run any code
    data: Any = field(default=None, metadata=UNUSED)
    diffusion: Any = field(default=None, metadata=UNUSED)
    encoder: Any = field(default=None, metadata=UNUSED)
    trainer: Any = field(default=None, metadata=UNUSED)
    window: Any = field(default=None, metadata=UNUSED)
    sampler: Any = "auto"
    safety: SafetyConfig = field(default_factory=SafetyConfig)
    episodes: Episodes = 50
    seed: Seed = 100_000
    videos: Annotated[int, Range(0, 1000)] = 3
    inference_batch: InferenceBatch = 64
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    device: str = "auto"


@command("evaluate", EvaluateConfig)
def main(config: EvaluateConfig, folder: Path) -> None:
    safety = build_safety(config.safety)
    with joined(config.limits.ranks_s) as ranks:
        device = ranks.device(config.device)
        policy, env = load_for_evaluation(config.checkpoint, config.task, config.env, device, config.trust_env)
        check_env(env, policy, config.limits.env_s)
        seeds = range(config.seed, config.seed + config.episodes)
        found = report(policy, env, config.sampler, seeds, config.inference_batch, safety, ranks, config.limits)
    if not ranks.is_first:
        return
    results = {
        "checkpoint": config.checkpoint,
        "safety": asdict(config.safety),
        **found,
        "latency_ms": latency_ms([(policy, config.sampler)], LATENCY_CALLS)[0],
    }
    path = folder / "results.json"
    write_text(path, json.dumps(results, indent=2))
    if config.videos > 0:
        if reason := why_not_drawn(env):
            print(f"no videos: {reason}; videos=0 skips them", file=sys.stderr)
        else:
            chosen = seeds[: config.videos]
            record_videos(policy, env, config.sampler, chosen, config.inference_batch, folder / "videos", safety)
    low, high = results["score_ci95"]
    low_rate, high_rate = results["success_ci95"]
    if safety is not None:
        print(
            f"certified {results['certified_rate']:.1%} and fallback {results['fallback_rate']:.1%} of ticks, "
            f"violations in {results['violation_rate']:.1%} of episodes, alarm in {results['alarm_ticks']} ticks, "
            f"{results['unchecked_ticks']} ticks not explained by the plant"
        )
    print(
        f"{results['n_episodes']} episodes, {results['sampler']['name']} with {results['steps']} steps: "
        f"mean score {results['mean_score']:.3f} [{low:.3f}, {high:.3f}], "
        f"success {results['success_rate']:.1%} [{low_rate:.1%}, {high_rate:.1%}], "
        f"{results['latency_ms']['p50']:.1f} ms per chunk\n{path}"
    )
