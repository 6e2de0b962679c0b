"""Figures of the speed benchmarks: one bar per contestant, with its blocks as points."""

import statistics
from collections.abc import Collection
from pathlib import Path

from matplotlib.figure import Figure


def plot_blocks(
    values: dict[str, list[float]], path: Path, label: str, ours: Collection[str] = (), log: bool = False
) -> None:
    """Draw bars at the medians, from top to bottom in the order of `values`, and save them to `path`.

    The bars of `ours` are darker.
    """
    figure = Figure(figsize=(7, 1.0 + 0.3 * len(values)), layout="constrained")
    axes = figure.subplots()
    for position, (name, blocks) in enumerate(reversed(values.items())):
        axes.barh(position, statistics.median(blocks), color="steelblue" if name in ours else "lightsteelblue")
        axes.plot(blocks, [position] * len(blocks), "k.", markersize=3)
    axes.set_yticks(range(len(values)), list(reversed(values)))
    axes.set(xlabel=f"{label} (bar: median, points: blocks)", xscale="log" if log else "linear")
    figure.savefig(path, dpi=150)
