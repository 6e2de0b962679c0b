"""Attack the safety layer and count what gets through: python scripts/benchmark_adversary.py

Policies that see the truth propose plans chosen to break the limits, in a world at the bounds of what is assumed. The
motion is judged at 1 kHz by code that the library does not use. Writes benchmark_adversary.json, .csv and .md.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from tqdm import tqdm

from diffpolicy.benchmarks.adversary.scenario import Scenario
from diffpolicy.benchmarks.adversary.scenarios import SCENARIOS
from diffpolicy.benchmarks.adversary.trial import LIMITS, Trial
from diffpolicy.benchmarks.files import write_rows
from diffpolicy.commands.command import command
from diffpolicy.evaluation.settings import InferenceBatch, Seed
from diffpolicy.system.files import write_text
from diffpolicy.system.schema import Range
from diffpolicy.system.tables import lookup

NAME = "benchmark_adversary"
TICKS_AT_A_TIME = 10
PATIENCE = 10  # a scenario ends once it took so many times the ticks that it should have certified
COLUMNS = ("scenario", "ticks", "certified", "violations", "alarms", "stored", "prefix", "travelled_px")


@dataclass
class BenchmarkAdversaryConfig:
    """All settings of `benchmark_adversary.py`; see configs/benchmark_adversary.yaml."""

    scenarios: list[str] | None = None
    certified: Annotated[int, Range(1, 1_000_000_000)] = 100_000
    robots: InferenceBatch = 80
    seed: Seed = 100_000


@command(NAME, BenchmarkAdversaryConfig)
def main(config: BenchmarkAdversaryConfig, folder: Path) -> None:
    names = list(SCENARIOS) if config.scenarios is None else config.scenarios
    scenarios = {name: lookup(SCENARIOS, "scenario", name) for name in names}  # unknown names before any work
    if not scenarios:
        raise ValueError("scenarios: none given")
    share = -(-config.certified // len(scenarios))
    rows = [measure(name, one, share, config) for name, one in tqdm(scenarios.items(), unit="scenario")]
    write_rows(folder, NAME, {"config": asdict(config), "rows": rows}, rows)
    write_text(folder / f"{NAME}.md", table(rows))
    print(f"{table(rows)}\n{folder / NAME}.json")


def measure(name: str, scenario: Scenario, certified: int, config: BenchmarkAdversaryConfig) -> dict[str, Any]:
    """Run a scenario until so many robot-ticks are certified; returns its row."""
    trial = Trial(scenario, config.robots, config.seed)
    while trial.tally.certified < certified and trial.tally.ticks < PATIENCE * certified + config.robots:
        trial.run(TICKS_AT_A_TIME)
    return {"scenario": name, **trial.tally.row()}


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown, and their sum."""
    lines = ["| " + " | ".join([*COLUMNS, "worst excess"]) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for row in rows:
        worst = [f"{name} {row[f'over_{name}']:.3g}" for name in LIMITS if row[f"over_{name}"] is not None]
        lines.append("| " + " | ".join([*(str(row[column]) for column in COLUMNS), ", ".join(worst)]) + " |")
    total = [sum(row[column] for row in rows) for column in COLUMNS[1:-1]]
    lines.append("| " + " | ".join(["all", *map(str, total), "", ""]) + " |")
    return "\n".join([*lines, "", *(f"{row['scenario']}: {row['first']}" for row in rows if row["violations"])])
