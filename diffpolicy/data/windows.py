"""Training windows: which rows of a data set form a sample, and which episodes are held out for validation."""

from __future__ import annotations

import numpy as np


def window_indices(
    episode_ends: np.ndarray,  # [n_episodes], one past each episode's last row
    horizon: int,
    pad_before: int = 0,
    pad_after: int = 0,
    episodes: np.ndarray | None = None,  # indices or boolean mask; default: all
) -> np.ndarray:
    """Row indices of every window of `horizon` steps, int64 [n_windows, horizon], in order of time.

    A window may begin up to `pad_before` steps before its episode and end up to `pad_after` steps after it. The steps
    outside repeat the episode's first or last row, as in the sequence sampler of Chi et al. 2023. An episode of
    length L has max(L - horizon + pad_before + pad_after + 1, 0) windows.

    Raises:
        ValueError: a setting is out of range, an episode does not exist, or no window fits any episode.
    """
    starts, lengths, steps = _windows(episode_ends, horizon, pad_before, pad_after, episodes)
    return starts + np.clip(steps, 0, lengths - 1)


def padded_steps(
    episode_ends: np.ndarray,
    horizon: int,
    pad_before: int = 0,
    pad_after: int = 0,
    episodes: np.ndarray | None = None,
) -> np.ndarray:
    """Which steps of the windows of `window_indices` lie outside their episode, bool [n_windows, horizon]."""
    _, lengths, steps = _windows(episode_ends, horizon, pad_before, pad_after, episodes)
    return (steps < 0) | (steps >= lengths)


def _windows(
    episode_ends: np.ndarray, horizon: int, pad_before: int, pad_after: int, episodes: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First row and length of each window's episode, [n_windows, 1], and its steps in there, [n_windows, horizon]."""
    if horizon < 1:
        raise ValueError(f"windows: horizon is {horizon}, expected at least 1")
    for name, padding in (("pad_before", pad_before), ("pad_after", pad_after)):
        if not 0 <= padding < horizon:
            raise ValueError(f"windows: {name} is {padding}, expected 0 to {horizon - 1} (horizon - 1)")
    ends = np.asarray(episode_ends, dtype=np.int64)
    starts = np.concatenate([[0], ends[:-1]]).astype(np.int64)
    chosen = _chosen(episodes, len(ends))
    starts, lengths = starts[chosen], ends[chosen] - starts[chosen]
    counts = windows_per_episode(ends, horizon, pad_before, pad_after)[chosen]
    if not counts.sum():
        raise ValueError(
            f"windows: no window of horizon {horizon} with pads {pad_before} and {pad_after} fits any of "
            f"{len(lengths)} episodes (longest: {lengths.max(initial=0)} steps)"
        )
    episode = np.repeat(np.arange(len(counts)), counts)
    nth = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return starts[episode, None], lengths[episode, None], (nth - pad_before)[:, None] + np.arange(horizon)


def windows_per_episode(
    episode_ends: np.ndarray, horizon: int, pad_before: int = 0, pad_after: int = 0
) -> np.ndarray:  # int64 [n_episodes]
    """The number of windows in each episode, with the arguments of `window_indices`; 0 in one that is too short."""
    lengths = np.diff(np.asarray(episode_ends, dtype=np.int64), prepend=0)
    return np.maximum(lengths - horizon + pad_before + pad_after + 1, 0)


def split_episodes(
    n_episodes: int,
    validation_fraction: float,
    seed: int,
    has_windows: np.ndarray | None = None,  # bool [n_episodes]; default: all True
) -> tuple[np.ndarray, np.ndarray]:
    """Split whole episodes at random by `seed`: sorted indices (training, validation).

    A fraction above 0 takes at least one episode for validation and leaves at least one for training; 0 takes none.
    Only episodes that have windows are taken for validation, and one that has some is left for training.

    Raises:
        ValueError: there are too few episodes, or the fraction is not in [0, 1).
    """
    if n_episodes < 1:
        raise ValueError(f"split: the data set has {n_episodes} episodes, expected at least 1")
    if not 0 <= validation_fraction < 1:
        raise ValueError(f"split: validation_fraction is {validation_fraction}, expected 0 <= fraction < 1")
    if validation_fraction > 0 and n_episodes == 1:
        raise ValueError("split: 1 episode cannot be divided; record more or set data.validation_fraction=0")
    order = np.random.default_rng(seed).permutation(n_episodes)
    candidates = order if has_windows is None else order[has_windows[order]]
    if validation_fraction > 0 and len(candidates) == 1:
        raise ValueError(
            f"split: only 1 of {n_episodes} episodes is long enough for a window; record longer ones, set a shorter "
            "window.horizon or data.validation_fraction=0"
        )
    wanted = max(round(n_episodes * validation_fraction), 1) if validation_fraction else 0
    validation = candidates[: min(wanted, len(candidates) - 1)]
    return np.sort(np.setdiff1d(order, validation)), np.sort(validation)


def _chosen(episodes: np.ndarray | None, n_episodes: int) -> np.ndarray:
    if episodes is None:
        return np.arange(n_episodes)
    episodes = np.asarray(episodes)
    if episodes.dtype == bool:
        if episodes.shape != (n_episodes,):
            raise ValueError(f"windows: episode mask has shape {episodes.shape}, expected ({n_episodes},)")
        return np.flatnonzero(episodes)
    wrong = episodes[(episodes < 0) | (episodes >= n_episodes)]
    if len(wrong):
        raise ValueError(f"windows: episode {wrong[0]} is not one of the {n_episodes} (0 to {n_episodes - 1})")
    return episodes.astype(np.int64)
