"""The streaming benchmark: its files, and what it refuses."""

import json
from pathlib import Path

from run_command import error_of, run


def test_batches_are_measured_with_and_without_workers(tmp_path: Path) -> None:
    small = ["images=500", "workers=[0,1]", "batch_size=16", "rounds=1", "batches_per_round=2"]
    result = run("benchmark_streaming.py", f"hydra.run.dir={tmp_path}", *small)
    assert result.returncode == 0, result.stderr
    written = json.loads((tmp_path / "benchmark_streaming.json").read_text(encoding="utf-8"))
    assert [line["workers"] for line in written["summary"]] == [0, 1]
    assert all(line["batches_per_second"] > 0 for line in written["summary"])
    assert 1 < written["decoded_per_used"] < 37
    assert (tmp_path / "benchmark_streaming.csv").exists()


def test_numbers_that_cannot_work_are_refused(tmp_path: Path) -> None:
    assert "workers[0] -1 must be between 0 and 256" in error_of("benchmark_streaming", tmp_path, "workers=[-1]")
