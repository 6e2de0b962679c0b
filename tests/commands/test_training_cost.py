"""training_cost.py counts what a step does."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from walk import PATIENCE_S, record


def test_the_cost_of_a_step_is_counted(repository: Path, tmp_path: Path) -> None:
    data = record(tmp_path / "walk.zarr")
    command = [sys.executable, str(repository / "scripts" / "training_cost.py"), "task=custom", f"data.path={data}"]
    command += ["data.observations={state: [state]}", "model.widths=[8,16]", "trainer.batch_size=64", "device=cpu"]
    done = subprocess.run(
        [*command, f"hydra.run.dir={tmp_path / 'run'}"],
        cwd=repository,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    cost = json.loads((tmp_path / "run" / "cost.json").read_text())
    assert f"{cost['parameters']:,} parameters, batch 64" in done.stdout
    assert cost["weight_mb"] == pytest.approx(64e-6 * cost["parameters"])
    # A weight is multiplied once in a row at least, forward and backward, and at most in each of 12 time steps.
    least, most = (6e-9 * 64 * rows * cost["parameters"] for rows in (0.5, 12))
    assert least < cost["gflop"] < most
    assert 0 < cost["fraction_low"] <= cost["fraction"] <= cost["fraction_high"]
