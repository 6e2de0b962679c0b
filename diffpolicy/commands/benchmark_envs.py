"""Benchmark env steps per CPU second against gym-pusht: python scripts/benchmark_envs.py peer_python=PYTHON

Each contestant runs in its own child process. They alternate block by block, with the same start states and actions.
Times are CPU seconds, so other load on the machine hardly matters. Writes benchmark_envs.json, .csv and .png.
"""

import statistics
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

from diffpolicy.benchmarks import env_worker
from diffpolicy.benchmarks.child import Child, find_peer
from diffpolicy.benchmarks.figures import plot_blocks
from diffpolicy.benchmarks.files import with_range, write_rows
from diffpolicy.commands.command import command
from diffpolicy.evaluation.settings import Seed
from diffpolicy.system.schema import Range

WORKER = Path(env_worker.__file__)
WRAPPINGS = ("made", "bare")  # as gymnasium.make returns it, and without wrappers


@dataclass
class BenchmarkEnvsConfig:
    """All settings of `benchmark_envs.py`; see configs/benchmark_envs.yaml."""

    blocks: Annotated[int, Range(2, 1000)] = 7
    episodes_per_block: Annotated[int, Range(1, 1_000_000)] = 3
    steps_per_episode: Annotated[int, Range(1, 1_000_000)] = 300
    seed: Seed = 0
    peer_python: str | None = None


class Contestant(NamedTuple):
    """A child process that steps one env on request; see `env_worker.run_block`."""

    name: str
    wrapping: str
    child: Child


@command("benchmark_envs", BenchmarkEnvsConfig)
def main(config: BenchmarkEnvsConfig, folder: Path) -> None:
    rows = measure(config)
    summary = summarise(rows)
    write(folder, config, rows, summary)
    for line in summary:
        print(
            f"{line['name']:<11} {line['wrapping']:<5} {line['median']:>8.0f} steps/s "
            f"[{line['lowest']:.0f}, {line['highest']:.0f}]  ratio {line['ratio']:.2f} "
            f"[{line['ratio_lowest']:.2f}, {line['ratio_highest']:.2f}]  contact in {line['contact']:.0%} of the steps"
        )
    print(folder / "benchmark_envs.json")


def measure(config: BenchmarkEnvsConfig) -> list[dict]:
    """One row per counted block and contestant."""
    contestants = start_contestants(config.peer_python)
    rows = []
    try:
        for block in range(config.blocks):
            first = config.seed + block * config.episodes_per_block
            seeds = list(range(first, first + config.episodes_per_block))
            for contestant in contestants if block % 2 == 0 else reversed(contestants):
                result = contestant.child.ask({"seeds": seeds, "steps": config.steps_per_episode})
                if block > 0:
                    rate = result["steps"] / result["seconds"]
                    where = {"block": block, "name": contestant.name, "wrapping": contestant.wrapping}
                    rows.append({**where, "steps_per_second": rate, **result})
    finally:
        for contestant in contestants:
            contestant.child.close()
    return rows


def start_contestants(peer_python: str | None) -> list[Contestant]:
    """Start our env and, if an interpreter has it, gym-pusht's."""
    peer_python = find_peer("gym_pusht", peer_python)
    pythons = {"diffpolicy": sys.executable} | ({} if peer_python is None else {"gym-pusht": peer_python})
    return [
        Contestant(name, wrapping, Child(python, WORKER, [name, wrapping]))
        for wrapping in WRAPPINGS
        for name, python in pythons.items()
    ]


def summarise(rows: list[dict]) -> list[dict]:
    """Per contestant: median and range of steps per second, and of the ratio to the peer in the same block."""
    rates = {(row["block"], row["name"], row["wrapping"]): row["steps_per_second"] for row in rows}
    blocks = sorted({row["block"] for row in rows})
    has_peer = any(row["name"] == "gym-pusht" for row in rows)
    summary = []
    for name, wrapping in dict.fromkeys((row["name"], row["wrapping"]) for row in rows):
        own = [row for row in rows if (row["name"], row["wrapping"]) == (name, wrapping)]
        speeds = [row["steps_per_second"] for row in own]
        reference = "gym-pusht" if has_peer else name
        ratios = [rates[block, name, wrapping] / rates[block, reference, wrapping] for block in blocks]
        line = {"name": name, "wrapping": wrapping, "median": statistics.median(speeds)}
        line |= {"lowest": min(speeds), "highest": max(speeds), **with_range("ratio", ratios)}
        line |= {key: statistics.mean(row[key] for row in own) for key in ("contact", "reward")}
        summary.append(line)
    return sorted(summary, key=lambda line: (line["wrapping"], line["name"]))


def write(folder: Path, config: BenchmarkEnvsConfig, rows: list[dict], summary: list[dict]) -> None:
    """Write benchmark_envs.json (everything), .csv (blocks) and .png (blocks as points) into `folder`."""
    document = {"config": asdict(config), "summary": summary, "blocks": rows}
    write_rows(folder, "benchmark_envs", document, rows)
    blocks: dict[str, list[float]] = {f"{line['name']}, {line['wrapping']}": [] for line in summary}
    for row in rows:
        blocks[f"{row['name']}, {row['wrapping']}"].append(row["steps_per_second"])
    plot_blocks(blocks, folder / "benchmark_envs.png", "Push-T env steps per CPU second")
