"""Evaluate a checkpoint: python scripts/evaluate_policy.py checkpoint=RUN/checkpoints/last episodes=50

With several processes: torchrun --nproc-per-node 2 scripts/evaluate_policy.py checkpoint=... hydra.run.dir=DIR
"""

import json
from dataclasses import asdict
from pathlib import Path

from cli import command

from diffpolicy.config import EvaluateConfig
from diffpolicy.distributed import joined
from diffpolicy.evaluation import check_evaluation, latency_ms, load_for_evaluation, record_videos, report
from diffpolicy.files import write_text
from diffpolicy.safety.build import build_safety

LATENCY_CALLS = 100


@command("evaluate", EvaluateConfig)
def main(config: EvaluateConfig, folder: Path) -> None:
    check_evaluation(config.episodes, config.inference_batch)
    with joined() as ranks:
        device = ranks.device(config.device)
        policy, env = load_for_evaluation(config.checkpoint, config.task, config.env, device)
        seeds = range(config.seed, config.seed + config.episodes)
        safety = build_safety(config.safety)
        found = report(policy, env, config.sampler, seeds, config.inference_batch, safety, ranks)
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
        f"{results['n_episodes']} episodes, {config.sampler.name} with {config.sampler.steps} steps: "
        f"mean score {results['mean_score']:.3f} [{low:.3f}, {high:.3f}], "
        f"success {results['success_rate']:.1%} [{low_rate:.1%}, {high_rate:.1%}], "
        f"{results['latency_ms']['p50']:.1f} ms a chunk\n{path}"
    )


if __name__ == "__main__":
    main()
