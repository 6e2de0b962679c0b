"""The statistics that LeRobot keeps of every feature: limits, mean, deviation and quantiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
Statistics = Mapping[str, Mapping[str, Any]]


def of_numbers(values: np.ndarray) -> dict[str, np.ndarray]:
    """The statistics of an array [length, *row] over its steps: each of shape [*row], [1] for single numbers."""
    rows = values.astype(np.float64).reshape(len(values), *(values.shape[1:] or (1,)))
    found = {"min": rows.min(0), "max": rows.max(0), "mean": rows.mean(0), "std": rows.std(0)}
    quantiles = np.quantile(rows, [*QUANTILES.values()], axis=0)
    return {**found, "count": np.array([len(values)]), **dict(zip(QUANTILES, quantiles, strict=True))}


class PixelCounts:
    """How often each channel of images has each of its 256 values, from which their statistics follow exactly."""

    def __init__(self, channels: int) -> None:
        self._counts, self._n_images = np.zeros((channels, 256), np.int64), 0

    def add(self, images: np.ndarray) -> None:
        """Count uint8 [n, height, width, channels]."""
        for channel, counts in enumerate(self._counts):
            counts += np.bincount(images[..., channel].reshape(-1), minlength=256)
        self._n_images += len(images)

    def statistics(self) -> dict[str, np.ndarray]:
        """The statistics in [0, 1], each of shape [channels, 1, 1]."""
        levels, total = np.arange(256) / 255, self._counts[0].sum()
        upto = np.cumsum(self._counts, axis=1)
        mean = self._counts @ levels / total
        variance = self._counts @ levels**2 / total - mean**2
        found = {
            "min": levels[(upto > 0).argmax(1)],
            "max": levels[(upto == total).argmax(1)],
            "mean": mean,
            "std": np.sqrt(np.maximum(variance, 0)),
            **{name: levels[(upto >= share * total).argmax(1)] for name, share in QUANTILES.items()},
        }
        return {"count": np.array([self._n_images]), **{key: each[:, None, None] for key, each in found.items()}}


def aggregated(per_episode: Sequence[Statistics], where: str) -> dict[str, dict[str, Any]]:
    """The statistics of all episodes together, as plain lists; quantiles are averaged, as LeRobot does.

    Raises:
        ValueError: the episodes do not have the same features, statistics or shapes.
    """
    try:
        return {name: _aggregated([each[name] for each in per_episode]) for name in (per_episode or [{}])[0]}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{where}: the statistics of the episodes do not fit together ({error!r})") from error


def _aggregated(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    stacked = {name: np.stack([np.asarray(part[name], np.float64) for part in parts]) for name in parts[0]}
    counts = stacked["count"].reshape(-1, *[1] * (stacked["mean"].ndim - 1))
    total = counts.sum(0)

    def weighted(values: np.ndarray) -> np.ndarray:
        return (values * counts).sum(0) / total

    mean = weighted(stacked["mean"])
    found = {
        "min": stacked["min"].min(0),
        "max": stacked["max"].max(0),
        "mean": mean,
        "std": np.sqrt(weighted(stacked["std"] ** 2 + (stacked["mean"] - mean) ** 2)),
        "count": stacked["count"].sum(0).astype(np.int64),
        **{name: weighted(stacked[name]) for name in QUANTILES if name in stacked},
    }
    return {name: value.tolist() for name, value in found.items()}
