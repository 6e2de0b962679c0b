"""Hydra's sweeps: one run folder per setting, side by side."""

import subprocess
import sys
from pathlib import Path

import pytest
from walk import PATIENCE_S, record

from diffpolicy import DiffusionPolicy

LAUNCHERS = {
    "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    "submitit": ["hydra/launcher=submitit_local"],  # its own queue, on this machine; submitit_slurm has the same part
}


@pytest.mark.parametrize(
    "launcher", [LAUNCHERS["joblib"], pytest.param(LAUNCHERS["submitit"], marks=pytest.mark.slow)], ids=LAUNCHERS
)
def test_a_sweep_trains_a_policy_per_setting(repository: Path, tmp_path: Path, launcher: list[str]) -> None:
    data = record(tmp_path / "walk.zarr")
    command = [sys.executable, str(repository / "scripts" / "train_policy.py"), "-m", "seed=0,1", *launcher]
    command += ["task=custom", f"data.path={data}", "data.observations={state: [state]}", "device=cpu"]
    command += ["model.widths=[8,16]", "trainer.steps=2", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    policies = [
        DiffusionPolicy.from_pretrained(tmp_path / "sweep" / str(job) / "checkpoints" / "last") for job in (0, 1)
    ]
    assert [policy.metadata["training"]["seed"] for policy in policies] == [0, 1]
