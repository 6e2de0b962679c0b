"""Evaluation of policies: episodes in a gymnasium env, scores with intervals, videos."""

from diffpolicy.evaluation.evaluate import evaluate, load_for_evaluation, record_videos, report, summarize
from diffpolicy.evaluation.monitor import Monitor
from diffpolicy.evaluation.rollout import Episode, make_vector_env, rollout
from diffpolicy.evaluation.settings import EnvConfig

__all__ = [
    "EnvConfig",
    "Episode",
    "Monitor",
    "evaluate",
    "load_for_evaluation",
    "make_vector_env",
    "record_videos",
    "report",
    "rollout",
    "summarize",
]
