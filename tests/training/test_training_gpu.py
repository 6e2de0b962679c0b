"""Training on a GPU: it learns in each precision, resumes, and under torchrun."""

import dataclasses
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from walk import PATIENCE_S, record, settings, tensors

from diffpolicy.networks.backbones.unet1d import UNet1dConfig
from diffpolicy.training.trainer import Trainer

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp("data") / "walk.zarr")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training_lowers_the_loss(data_set: Path, tmp_path: Path, precision: str) -> None:
    short = {"steps": 60, "learning_rate": 3e-3, "precision": precision}
    Trainer(settings(data_set, trainer=short, device="cuda"), tmp_path).run()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert np.mean(losses[-3:]) < 0.6 * losses[0]


def test_a_resumed_run_ends_where_an_uninterrupted_one_ends(data_set: Path, tmp_path: Path) -> None:
    # Two channels in a group at least: with one, its bias has a gradient of rounding alone, which Adam magnifies.
    model = UNet1dConfig(widths=[16, 32], time_embedding_dim=8)
    config = settings(data_set, device="cuda", model=model)
    whole = Trainer(config, tmp_path / "whole")
    whole.run()
    first = Trainer(config, tmp_path / "parts")
    first.train_step = stop_after(first, 16)
    with pytest.raises(KilledError):
        first.run()
    resumed = Trainer(dataclasses.replace(config, resume=True), tmp_path / "parts")
    assert resumed.step == 16
    resumed.run()
    ends = [tensors(tmp_path / name / "checkpoints" / "last") for name in ("whole", "parts")]
    for name, value in ends[0].items():
        # A GPU may sum gradients in another order each time; a step moves weights by about 1e-3.
        torch.testing.assert_close(ends[1][name], value, rtol=0, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_step_as_one_cuda_graph_trains_like_separate_calls(
    data_set: Path, tmp_path: Path, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.nn.Module, "compile", lambda *_, **__: None)  # fused kernels would round differently
    losses = []
    for is_captured in (False, True):
        config = settings(data_set, trainer={"precision": precision, "compile": is_captured}, device="cuda")
        trainer = Trainer(config, tmp_path / str(is_captured))
        with warnings.catch_warnings(action="error", category=RuntimeWarning):  # of a capture that failed
            losses.append([float(trainer.train_step()[0]) for trainer.step in range(8)])
    tolerance = 1e-4 if precision == "float32" else 2e-2  # of eight steps, whose sums may run in another order
    np.testing.assert_allclose(losses[1], losses[0], rtol=tolerance)


def test_torchrun_with_one_gpu_trains(data_set: Path, tmp_path: Path, repository: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "1", "scripts/train_policy.py"]
    command += ["task=custom", f"data.path={data_set}", "data.observations={state: [state]}", "model.widths=[8,16]"]
    command += ["trainer.steps=5", "trainer.batch_size=16", "trainer.warmup_steps=1", "device=cuda"]
    done = subprocess.run(
        [*command, f"hydra.run.dir={tmp_path / 'run'}"],
        cwd=repository,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([".", "envs", os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "checkpoints" / "last").exists()


class KilledError(Exception):
    pass


def stop_after(trainer: Trainer, step: int):
    """The trainer's step, which fails once `step` steps are done and saved."""
    train_step = trainer.train_step

    def failing():
        if trainer.step == step:
            raise KilledError
        return train_step()

    return failing
