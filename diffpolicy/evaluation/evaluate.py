"""Evaluation of a policy in the env of a task: scores with intervals, latency, videos."""

import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffpolicy._version import __version__
from diffpolicy.control.controller import PolicyController
from diffpolicy.control.deadline import blank_call
from diffpolicy.evaluation.intervals import bootstrap_interval, wilson_interval
from diffpolicy.evaluation.monitor import Monitor
from diffpolicy.evaluation.outcome import step_limit
from diffpolicy.evaluation.rollout import Episode, OnTick, make_vector_env, rollout
from diffpolicy.evaluation.saved_env import saved_env
from diffpolicy.evaluation.settings import EnvConfig
from diffpolicy.evaluation.sharded import sharded
from diffpolicy.evaluation.video import VideoRecorder, Zone
from diffpolicy.policy.kinds import load_policy
from diffpolicy.policy.protocol import Policy
from diffpolicy.safety.settings import Safety
from diffpolicy.system.distributed import ALONE, Ranks
from diffpolicy.system.patience import Patience
from diffpolicy.system.tables import Choice
from diffpolicy.system.time_limits import LimitsConfig

WARM_UP = 3  # untimed calls
DEFAULT_FPS = 10


def evaluate(
    policy: Policy,
    env: EnvConfig,
    sampler: Choice,
    seeds: Sequence[int],
    inference_batch: int,
    safety: Safety | None = None,
    on_tick: OnTick | None = None,
    patience: Patience | None = None,
    progress: bool = False,
) -> list[Episode]:
    """Run one episode per seed; `patience` is how long a tick may take, `progress` shows a bar.

    Raises:
        TimeoutError: the env hangs.
        ValueError: the env does not fit, or a reward is not finite.
    """
    with patience or Patience("the env", LimitsConfig.env_s, "limits.env_s") as watched:
        controller = PolicyController(policy, sampler, safety=safety, inference_batch=inference_batch)
        vector_env = make_vector_env(env, min(len(seeds), inference_batch))

        def ticked(*happened: Any) -> None:
            watched.beat()
            if on_tick is not None:
                on_tick(*happened)

        try:
            limit = step_limit(env, vector_env)
            return rollout(
                controller,
                vector_env,
                seeds,
                env.reset_options,
                on_tick=ticked,
                max_episode_steps=limit,
                progress=progress,
            )
        finally:
            vector_env.close()


def record_videos(
    policy: Policy,
    env: EnvConfig,
    sampler: Choice,
    seeds: Sequence[int],
    inference_batch: int,
    folder: Path,
    safety: Safety | None = None,
) -> list[Episode]:
    """Run the same episodes again and record them in `folder`, with the zones of `safety`. Bit-equal to `evaluate`.

    The videos have the env's `render_fps`, 10 if it names none. What a policy's cameras show stands beside the scene.
    """
    controller = PolicyController(policy, sampler, safety=safety, inference_batch=inference_batch)
    vector_env = make_vector_env(env, min(len(seeds), inference_batch), render_mode="rgb_array")
    fps = vector_env.metadata.get("render_fps") or DEFAULT_FPS
    recorder = VideoRecorder(folder, list(seeds), fps, _zones(safety), policy)
    try:
        limit = step_limit(env, vector_env)
        return rollout(
            controller, vector_env, seeds, env.reset_options, on_step=recorder, max_episode_steps=limit, progress=True
        )
    finally:
        recorder.close()
        vector_env.close()


def summarize(episodes: Sequence[Episode]) -> dict[str, Any]:
    """Mean score and success rate, with 95 % intervals."""
    scores = [episode.score for episode in episodes]
    successes = sum(episode.success for episode in episodes)
    return {
        "n_episodes": len(episodes),
        "mean_score": float(np.mean(scores)),
        "score_ci95": bootstrap_interval(scores),
        "success_rate": successes / len(episodes),
        "success_ci95": wilson_interval(successes, len(episodes)),
    }


def latency_ms(contestants: Sequence[tuple[Policy, Choice]], repeats: int) -> list[dict[str, float]]:
    """Milliseconds from observation to action chunk for one robot: percentiles over `repeats` calls after a warm-up.

    The contestants take turns, call by call, so that other load on the machine slows all of them down alike.
    """
    calls = [blank_call(policy, policy.sampling(sampler)) for policy, sampler in contestants]
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats + WARM_UP):
        for call, own in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            own.append(1e3 * (time.perf_counter() - start))
    return [{f"p{q}": float(np.percentile(own[WARM_UP:], q)) for q in (50, 95, 99)} for own in times]


def _zones(safety: Safety | None) -> list[Zone]:
    """The obstacles that are known in advance, as videos show them."""
    if safety is None or safety.zones is None:
        return []
    known = safety.zones.without_empty_slots
    return [
        (corners.numpy(), float(radius)) for corners, radius in zip(known.vertices[0], known.radius[0], strict=True)
    ]


def summarize_safety(monitor: Monitor, ranks: Ranks = ALONE) -> dict[str, float]:
    """Rates of ticks that were certified or fell back, and of episodes that broke a constraint."""
    names = ("ticks", "certified", "fallback", "unchecked", "alarm")
    records = list(monitor.records.values())
    broken = sum(record.violations + record.over_limits > 0 for record in records)
    sums = [broken, len(records), *(sum(getattr(record, name) for record in records) for name in names)]
    broken, episodes, ticks, certified, fallback, unchecked, alarm = ranks.total(torch.tensor(sums)).tolist()
    return {
        "certified_rate": certified / ticks,
        "fallback_rate": fallback / ticks,
        "violation_rate": broken / episodes,
        "unchecked_ticks": unchecked,
        "alarm_ticks": alarm,
    }


def load_for_evaluation(
    checkpoint: str, task: str | None, env: EnvConfig | None, device: torch.device, trust_env: bool = False
) -> tuple[Policy, EnvConfig]:
    """Load the policy of a checkpoint, on disk or shipped. Returns it with `env`, or else the env it was trained for.

    Raises:
        FileNotFoundError: there is no checkpoint of that name.
        ValueError: the checkpoint is for another task than `task`, or its task has no env, or one that `saved_env`
            refuses unless `trust_env`.
    """
    policy = load_policy(checkpoint, device)
    found = policy.metadata.get("task")
    if task is not None and task != found:
        raise ValueError(f"checkpoint: {checkpoint} was trained for task {found}, not {task}; leave task out to use it")
    if env is None and policy.metadata.get("env") is None:
        raise ValueError(f"checkpoint: {checkpoint} was trained for task {found}, which has no env to evaluate in")
    return policy, env or saved_env(policy, f"checkpoint: {checkpoint}", trust_env)


def report(
    policy: Policy,
    env: EnvConfig,
    sampler: Choice,
    seeds: Sequence[int],
    inference_batch: int,
    safety: Safety | None = None,
    ranks: Ranks = ALONE,
    limits: LimitsConfig | None = None,
) -> dict[str, Any]:
    """The contents of results.json except for the checkpoint's path and the latency. All ranks share the episodes."""
    monitor = Monitor(safety) if safety else None
    sampling = policy.sampling(sampler)

    def run(shard: Sequence[int]) -> list[Episode]:
        patience = Patience("the env", (limits or LimitsConfig()).env_s, "limits.env_s")
        return evaluate(policy, env, sampler, shard, inference_batch, safety, monitor, patience, ranks.is_first)

    episodes = sharded(ranks, seeds, run)
    return {
        "version": __version__,
        "commit": _commit(),
        "task": policy.metadata.get("task"),
        "training_step": policy.metadata.get("step"),
        "sampler": asdict(sampling.settings),
        "steps": sampling.settings.steps,
        "evaluations": len(sampling.sampler),
        "n_action_steps": policy.config.window.n_action_steps,
        "device": str(policy.device),
        "start_rule": env.reset_options.get("start_rule", "env"),
        **summarize(episodes),
        **(summarize_safety(monitor, ranks) if monitor else {}),
        "episodes": [asdict(episode) for episode in episodes],
    }


def _commit() -> str | None:
    """The commit of the running source tree; None if it is not a git checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
