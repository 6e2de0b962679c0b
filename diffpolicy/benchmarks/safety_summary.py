"""Summarises the episodes of one row of the safety benchmark, from executed motion only."""

import math
from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt

from diffpolicy.evaluation.intervals import wilson_interval
from diffpolicy.evaluation.monitor import EpisodeRecord, Monitor
from diffpolicy.evaluation.rollout import Episode
from diffpolicy.safety.settings import Safety


class Watch:
    """An `OnTick` that runs the monitor and keeps what the env itself reports about each episode."""

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


def share(values: list[bool]) -> float:
    """The share of true values; NaN if there are none."""
    return float(np.mean(values)) if values else math.nan


def entropy(sides: list[int]) -> float:
    """The entropy of the choice of side, in bits."""
    shares = np.array([count for side, count in Counter(sides).items() if side]) / max(1, sum(s != 0 for s in sides))
    return float(-(shares * np.log2(shares)).sum()) + 0.0


def path_length(record: EpisodeRecord) -> float:
    """The length of the executed motion, tick by tick."""
    return float(np.linalg.norm(np.diff(record.path, axis=0), axis=-1).sum()) if len(record.path) > 1 else 0.0


def jerk(record: EpisodeRecord) -> float:
    """The root mean square of the third difference of the executed positions, in units per tick^3."""
    third = np.diff(record.path, n=3, axis=0) if len(record.path) > 3 else np.zeros((1, 2))
    return float(np.sqrt((third**2).sum(-1).mean()))
