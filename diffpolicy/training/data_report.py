"""What is odd about the numbers of a data set: a line for each kind of oddity and key, before training begins."""

import logging
from collections.abc import Callable, Sequence

import numpy as np

from diffpolicy.data.demonstrations import Demonstrations
from diffpolicy.data.images import Frames
from diffpolicy.data.survey import Column
from diffpolicy.data.windows import windows_per_episode
from diffpolicy.policy.normalizers import ACTION
from diffpolicy.policy.settings import PolicyConfig

LISTED = 5  # columns of one line
COARSE = 1e-3  # an error of float32 that matters, as a share of the column's range

log = logging.getLogger(__name__)


def log_report(data: Demonstrations, config: PolicyConfig) -> None:
    """Log all lines of `report` as warnings."""
    for line in report(data, config):
        log.warning("%s", line)


def report(data: Demonstrations, config: PolicyConfig) -> list[str]:
    """Lines that name columns which are constant, have outliers or lose precision, cameras that show nothing, and
    episodes that are too short.

    Args:
        config: the settings of the policy, with the defaults filled in.
    """
    lines = [line for key, columns in data.columns.items() for line in _of_key(key, columns, data, config)]
    lines += [line for key, frames in data.frames.items() for line in _of_camera(key, frames, data)]
    window = config.window
    counts = windows_per_episode(data.episode_ends, window.horizon, window.n_obs_steps - 1, window.n_action_steps - 1)
    if short := int((counts == 0).sum()):
        lines.append(f"data: {short} of {data.n_episodes} episodes are too short for a window and are not used")
    return lines


def _of_key(key: str, columns: Sequence[Column], data: Demonstrations, config: PolicyConfig) -> list[str]:
    normalizer = config.normalizer[key]
    constant, others = [], []
    for column in columns:
        is_constant = column.low == column.high or column.high - column.low < normalizer.range_eps
        (constant if is_constant else others).append(column)
    coarse = [column for column in others if column.rounding > COARSE * (column.high - column.low)]
    far = [column for column in others if column.outlier is not None]
    lines = []
    if constant:
        effect = "policies always send this value" if key == ACTION else "they tell a policy nothing"
        lines.append(f"data: {key}: constant: {_listed(constant, _constant)}; {effect}")
    if far:
        cure = "" if normalizer.name == "quantiles" else f"; 'data.normalizer={{{key}: quantiles}}' allows for them"
        lines.append(f"data: {key}: outliers: {_listed(far, lambda column: _outlier(column, data.episode_ends))}{cure}")
    if coarse:
        cure = "subtract a constant before recording"
        lines.append(f"data: {key}: rounded by float32: {_listed(coarse, _rounding)}; {cure}")
    return lines


def _of_camera(key: str, frames: Frames, data: Demonstrations) -> list[str]:
    if frames.are_equal and frames.count > 1:
        return [f"data: {key}: all {frames.count} frames are the same picture; they tell a policy nothing"]
    lines = []
    for rows, what in ((frames.black, "black"), (frames.plain, "of a single colour")):
        if rows:
            where = _place(rows[0], data.episode_ends)
            lines.append(f"data: {key}: {len(rows)} of {frames.count} frames are {what}, the first in {where}")
    return lines


def _place(row: int, ends: np.ndarray) -> str:
    episode = int(np.searchsorted(ends, row, side="right"))
    return f"episode {episode} at step {row - (int(ends[episode - 1]) if episode else 0)}"


def _listed(columns: Sequence[Column], told: Callable[[Column], str]) -> str:
    more = [f"and {len(columns) - LISTED} more"] if len(columns) > LISTED else []
    return ", ".join([*(told(column) for column in columns[:LISTED]), *more])


def _constant(column: Column) -> str:
    if column.low == column.high:
        return f"{column.name} at {column.low:g}"
    return f"{column.name} at {(column.low + column.high) / 2:g} (range {column.high - column.low:.1g})"


def _outlier(column: Column, ends: np.ndarray) -> str:
    assert column.outlier is not None
    is_above = column.high - column.inner_high >= column.inner_low - column.low
    return (
        f"{column.name} reaches {column.high if is_above else column.low:g} in {_place(column.outlier, ends)} "
        f"(98 % lie in {column.inner_low:g} to {column.inner_high:g})"
    )


def _rounding(column: Column) -> str:
    return f"{column.name} by up to {column.rounding:.2g} (range {column.high - column.low:g})"
