"""The training benchmark: its files, what it refuses, and that the contestants begin from the same kind of loss."""

import csv
import json
import re
from pathlib import Path

import pytest
from one_case import over
from run_command import error_of, run


@pytest.mark.slow
def test_contestants_start_from_the_same_loss_and_files_are_written(tmp_path: Path) -> None:
    settings = ["models=[unet_small]", "threads=[1]", "workers=1", "blocks=2", "steps_per_block=2"]
    result = run(
        "benchmark_training.py",
        f"hydra.run.dir={tmp_path}",
        *settings,
        "settings=['task=pusht','trainer.batch_size=64']",
    )
    assert result.returncode == 0, result.stderr
    written = json.loads((tmp_path / "benchmark_training.json").read_text(encoding="utf-8"))
    assert {line["name"] for line in written["summary"]} == {"diffpolicy", "plain"}
    with (tmp_path / "benchmark_training.csv").open() as file:
        losses = {row["name"]: float(row["loss"]) for row in csv.DictReader(file)}
    assert losses["diffpolicy"] == pytest.approx(losses["plain"], rel=0.3)  # untrained: about 1, by other noise
    assert (tmp_path / "benchmark_training.png").stat().st_size > 1000


@over(
    "override, message",
    [
        ("models=[large]", "model: 'large' is unknown, expected one of dit_small, transformer_small, unet, u"),
        ("contestants=[plain]", r"must name diffpolicy"),
        ("blocks=1", "blocks 1 must be at least 2"),
    ],
)
def test_errors_name_the_cause(tmp_path: Path, override: str, message: str) -> None:
    assert re.search(message, error_of("benchmark_training", tmp_path, override))
