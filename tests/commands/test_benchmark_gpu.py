"""benchmark_gpu.py reports what each step did, whatever happens to it; without a GPU it says so."""

import json
import sys
from pathlib import Path

import pytest
import torch
from run_command import error_of

from diffpolicy.benchmarks.gpu_steps import SIZES, Step, acting, losses, measurements, recipe
from diffpolicy.commands.benchmark_gpu import BenchmarkGpuConfig, Report


def step(name: str, code: str, limit_s: float = 60.0) -> Step:
    return Step(name, [sys.executable, "-c", code], limit_s, lambda folder: [(folder / "figure").read_text()])


def test_a_step_that_fails_or_hangs_does_not_stop_the_next(tmp_path: Path) -> None:
    write = "import pathlib; p = pathlib.Path({!r}); p.mkdir(); (p / 'figure').write_text('42 ms')"
    report = Report(BenchmarkGpuConfig(), tmp_path)
    report.run(step("fails", "print('what was wrong'); raise SystemExit(3)"))
    report.run(step("hangs", "import time; print('began', flush=True); time.sleep(1000)", limit_s=5.0))
    report.run(step("works", write.format(str(tmp_path / "works"))))
    rows = json.loads((tmp_path / "report.json").read_text())["steps"]
    assert [row["result"].partition(";")[0] for row in rows] == [
        "failed with status 3",
        "stopped at its time limit",
        "done",
    ]
    assert "what was wrong" in rows[0]["lines"]
    assert "began" in rows[1]["lines"]
    assert rows[2]["lines"] == ["42 ms"]
    page = (tmp_path / "report.md").read_text()
    assert all(f"## {row['name']}" in page for row in rows)


def test_what_does_not_fit_into_the_time_is_left_out(tmp_path: Path) -> None:
    report = Report(BenchmarkGpuConfig(minutes=0.0), tmp_path)
    report.run(step("late", "raise SystemExit(0)"))
    (row,) = json.loads((tmp_path / "report.json").read_text())["steps"]
    assert row["result"].startswith("left out")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    message = error_of("benchmark_gpu", tmp_path)
    assert message.startswith("error: no GPU")
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize("size", sorted(SIZES))
def test_every_step_is_a_script_that_exists(size: str, repository: Path) -> None:
    steps = [
        *measurements(SIZES[size], "cpu", Path("out")),
        *recipe(SIZES[size], "cpu", Path("out"), 5, 60.0),
        *acting(SIZES[size], "cpu", Path("out")),
    ]
    scripts = [one.command[1] for one in steps if one.name != "tests"]
    assert all((repository / script).is_file() for script in scripts)
    assert len({one.name for one in steps}) == len(steps)


def test_the_losses_of_a_run_are_its_first_and_its_last(tmp_path: Path) -> None:
    rows = [{"step": 50, "loss": 0.5}, {"step": 75, "validation_loss": 9.0}, {"step": 100, "loss": 0.25}]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert losses(tmp_path) == ["step 50: loss 0.5000", "step 100: loss 0.2500"]


def test_all_tests_marked_gpu_are_in_files_that_it_runs(repository: Path) -> None:
    marked = [path for path in (repository / "tests").rglob("test_*.py") if "mark." + "gpu" in path.read_text()]
    assert len(marked) >= 3
    assert all(path.stem.endswith("_gpu") for path in marked)
