"""Everything worth measuring on a GPU, in minutes: python scripts/benchmark_gpu.py

Runs the tests marked gpu, then latency, throughput, training, the paper's recipe (human data, 65.8 million parameters),
evaluation and planning under safety, most telling first. Each step is a process with a time limit; one that fails does
not stop the next. Needs no network. Writes report.md and report.json into the run folder, after every step.
"""

import json
import platform
import shlex
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch

from diffpolicy.benchmarks.gpu_steps import SIZES, Step, acting, measurements, read, recipe
from diffpolicy.benchmarks.limited import GRACE_S, Outcome, run_limited
from diffpolicy.commands.command import command
from diffpolicy.system.files import write_text
from diffpolicy.system.schema import Range
from diffpolicy.system.tables import lookup

EVALUATION_S = 60.0  # kept for the evaluations of the recipe
TRAINING_SHARE = 0.7  # of what is left then, for training itself; the rest is start-up and its own short evaluation
FALLBACK_STEP_S = 0.05  # where no step was timed
LINES_OF_LOG = 12  # of a step that failed, in the report

LEFT_OUT = Outcome(status=0, seconds=0.0, is_over_limit=True)
ENVIRONMENT = {"OMP_NUM_THREADS": "4"}


@dataclass
class BenchmarkGpuConfig:
    """All settings of `benchmark_gpu.py`; see configs/benchmark_gpu.yaml."""

    device: str = "cuda"
    size: str = "full"
    minutes: Annotated[float, Range(above=0, most=1e5)] = 8.0
    only: list[str] = field(default_factory=list)


@command("benchmark_gpu", BenchmarkGpuConfig)
def main(config: BenchmarkGpuConfig, folder: Path) -> None:
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"no GPU that torch {torch.__version__} can use; to rehearse without: device=cpu size=tiny")
    report = Report(config, folder)
    size = lookup(SIZES, "size", config.size)
    for step in measurements(size, config.device, folder):
        report.run(step)
    seconds, compiled = (step_seconds(folder / name) for name in ("training", "compiled"))
    settings = ["trainer.compile=true"] if compiled < seconds else []
    left_s = report.left_s - EVALUATION_S
    steps = 20 if config.size == "tiny" else max(1, round(TRAINING_SHARE * left_s / min(seconds, compiled)))
    for step in recipe(size, config.device, folder, steps, left_s, *settings):
        report.run(step)
    for step in acting(size, config.device, folder):
        report.run(step)
    print(folder / "report.md")


def step_seconds(folder: Path) -> float:
    """What a training step takes, as it was measured in `folder`."""
    path = folder / "cost.json"
    return read(path)["step_s"] if path.exists() else FALLBACK_STEP_S


class Report:
    """Runs steps and writes what they found to `folder`."""

    def __init__(self, config: BenchmarkGpuConfig, folder: Path) -> None:
        self._config, self._folder = config, folder
        self._start = time.monotonic()
        self._rows: list[dict[str, Any]] = []

    @property
    def left_s(self) -> float:
        """Time for further steps; a step may take a little longer than its limit, to end in order."""
        return 60.0 * self._config.minutes - (time.monotonic() - self._start) - GRACE_S

    def run(self, step: Step) -> None:
        """Run a step and write the report again; nothing that the step does raises."""
        if self._config.only and step.name not in self._config.only:
            return
        log = self._folder / f"{step.name}.log"
        limit_s = min(step.limit_s, self.left_s)
        outcome = run_limited(step.command, limit_s, log, ENVIRONMENT) if limit_s > 0 else LEFT_OUT
        lines, words = found(step, outcome, self._folder / step.name, log)
        print(f"{step.name}: {words}, {outcome.seconds:.0f} s", *lines, sep="\n", flush=True)
        row = {"name": step.name, "command": shlex.join(["python", *step.command[1:]]), "limit_s": limit_s}
        self._rows.append({**row, **asdict(outcome), "result": words, "lines": lines})
        self._write()

    def _write(self) -> None:
        document = {"config": asdict(self._config), **machine(), "steps": self._rows}
        write_text(self._folder / "report.json", json.dumps(document, indent=2))
        write_text(self._folder / "report.md", markdown(document))


def found(step: Step, outcome: Outcome, folder: Path, log: Path) -> tuple[list[str], str]:
    """A step's figures, and how it ended, in a few words; of a step that failed the end of its output."""
    if outcome is LEFT_OUT:
        return [], "left out: no time left"
    output = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    words = output[-1] if step.name == "tests" and output else "done"
    if outcome.is_over_limit:
        words = "stopped at its time limit"
    elif not outcome.succeeded:
        words = f"failed with status {outcome.status}"
    lines = []
    try:
        lines = step.figures(folder)
    except (OSError, ValueError, KeyError, IndexError) as error:
        words += f"; its figures cannot be read ({error})"
    if not outcome.succeeded:
        lines = [*lines, "", "```", *output[-LINES_OF_LOG:], "```"]
    return lines, words


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    facts = {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda}
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    return {**facts, "cpu": torch.backends.cpu.get_cpu_capability(), "platform": sys.platform}


def markdown(document: dict[str, Any]) -> str:
    """The report as a page."""
    where = ", ".join(f"{key} {document[key]}" for key in ("gpu", "torch", "cuda", "python") if key in document)
    lines = ["# GPU report", "", where, "", "| step | result | seconds |", "|---|---|---|"]
    lines += [f"| {row['name']} | {row['result']} | {row['seconds']:.0f} |" for row in document["steps"]]
    for row in document["steps"]:
        lines += ["", f"## {row['name']}", "", f"`{row['command']}`", "", *row["lines"]]
    return "\n".join([*lines, ""])
