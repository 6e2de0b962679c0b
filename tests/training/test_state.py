"""A training state has the tensors that the trainer expects, or nothing of it is loaded."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import walk
from one_case import over
from torch import Tensor

from diffpolicy.system import checkpoint
from diffpolicy.training.trainer import Trainer

BIAS = "network.head.1.bias"
AVERAGE = f"optimizer.{BIAS}.exp_avg"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("state")
    walk.record(folder / "walk.zarr")
    Trainer(settings(folder), folder / "run").run()
    return folder


def settings(folder: Path, resume: bool = False):
    short = {"steps": 4, "checkpoint_every": 4, "validate_every": 4}
    return walk.settings(folder / "walk.zarr", trainer=short, resume=resume)


def resumed(run: Path, folder: Path, change: Callable[[dict[str, Tensor]], object]) -> Trainer:
    """Resume the run with a changed training state, whose hash is right."""
    saved = folder / "run" / "checkpoints" / "step_4"
    shutil.copytree(run / "run", folder / "run", symlinks=True)
    config = {key: value for key, value in checkpoint.read_config(saved).items() if key != "sha256"}
    model, state = (checkpoint.read_tensors(saved, name) for name in ("model", "training_state"))
    change(state)
    shutil.rmtree(saved)
    checkpoint.write(saved, config, {"model": model, "training_state": state})
    return Trainer(settings(run, resume=True), folder / "run")


def test_a_whole_state_is_loaded(run: Path, tmp_path: Path) -> None:
    assert resumed(run, tmp_path, lambda state: None).step == 4


@over(
    "change, message",
    [
        (lambda state: state.update({AVERAGE: torch.zeros(1, 1)}), r"exp_avg has shape \[1, 1\], expected \[1\]"),
        (lambda state: state.update({AVERAGE: torch.zeros(1).double()}), "exp_avg is torch.float64, expected"),
        (lambda state: state.update({AVERAGE: torch.zeros(9)}), r"exp_avg has shape \[9\], expected \[1\]"),
        (lambda state: state.update({AVERAGE: torch.tensor([torch.nan])}), "exp_avg holds NaN or infinity"),
        (lambda state: state.pop(AVERAGE), "missing tensors .*exp_avg"),
        (lambda state: state.update({"optimizer.none.step": torch.zeros(())}), "unknown tensors .*none.step"),
        (lambda state: state.update({f"optimizer.{BIAS}.step": torch.tensor(9.0)}), "moments are of step 9"),
        (lambda state: state.update({f"optimizer.{BIAS}.exp_avg_sq": torch.tensor([-1.0])}), "is negative"),
        (lambda state: state.update(best_score=torch.tensor(torch.nan, dtype=torch.float64)), "best_score is nan"),
        (lambda state: state.update(recent=torch.zeros(3)), r"recent has shape \[3\], expected \[any, 2\]"),
        (lambda state: state.update({f"model.{BIAS}": torch.zeros(1).half()}), "is torch.float16, expected"),
    ],
)
def test_a_state_that_the_trainer_does_not_expect_is_refused(run: Path, tmp_path: Path, change, message: str) -> None:
    with pytest.raises(ValueError, match=f"training state: .*{message}"):
        resumed(run, Path(tempfile.mkdtemp(dir=tmp_path)), change)


@over(
    "line, message",
    [
        ('{"loss": 1.0}', "line 1: step is None, expected int"),
        ('{"step": 1.5}', "line 1: step is 1.5, expected int"),
        ('{"step": 1, "loss": "low"}', r"line 1\['loss'\] is 'low', expected float"),
        ('{"step": 1, "loss": NaN}', "line 1 is not valid JSON"),
        ("[]", r"line 1 is \[\], expected a mapping"),
    ],
)
def test_a_damaged_row_of_the_metrics_is_named(run: Path, tmp_path: Path, line: str, message: str) -> None:
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    shutil.copytree(run / "run", folder / "run", symlinks=True)
    path = folder / "run" / "metrics.jsonl"
    path.write_text(f"{line}\n{path.read_text()}")
    trainer = Trainer(settings(run, resume=True), path.parent)
    with pytest.raises(ValueError, match=rf"metrics\.jsonl, {message}"):
        trainer.run()
