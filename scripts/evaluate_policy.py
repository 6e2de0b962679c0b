"""Evaluate a checkpoint: python scripts/evaluate_policy.py checkpoint=RUN/checkpoints/last episodes=50"""

import json
from pathlib import Path

from cli import command

from diffpolicy.config import EvaluateConfig
from diffpolicy.evaluation import load_for_evaluation, record_videos, report
from diffpolicy.trainer import choose_device


@command("evaluate", EvaluateConfig)
def main(config: EvaluateConfig, folder: Path) -> None:
    if config.episodes < 1 or config.videos < 0:
        raise ValueError(f"episodes {config.episodes} must be at least 1, videos {config.videos} at least 0")
    policy, env = load_for_evaluation(config.checkpoint, config.task, choose_device(config.device))
    seeds = range(config.seed, config.seed + config.episodes)
    results = {"checkpoint": config.checkpoint, **report(policy, env, config.sampler, seeds, config.inference_batch)}
    path = folder / "results.json"
    path.write_text(json.dumps(results, indent=2), encoding="utf-8")
    if config.videos:
        record_videos(policy, env, config.sampler, seeds[: config.videos], config.inference_batch, folder / "videos")
    low, high = results["score_ci95"]
    low_rate, high_rate = results["success_ci95"]
    print(
        f"{results['n_episodes']} episodes, {config.sampler.name} with {config.sampler.steps} steps: "
        f"mean score {results['mean_score']:.3f} [{low:.3f}, {high:.3f}], "
        f"success {results['success_rate']:.1%} [{low_rate:.1%}, {high_rate:.1%}], "
        f"{results['latency_ms']['p50']:.1f} ms a chunk\n{path}"
    )


if __name__ == "__main__":
    main()
