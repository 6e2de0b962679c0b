"""The training benchmark: its files, what it refuses, and that the contestants begin from the same kind of loss."""

import csv
import json
import re
from pathlib import Path

import pytest
from one_case import over
from run_command import error_of, run


def benchmark(folder: Path, settings: list[str]) -> dict:
    """What the benchmark writes into `folder` with these settings of training."""
    small = ["models=[unet_small]", "threads=[1]", "workers=1", "blocks=2", "steps_per_block=2"]
    result = run("benchmark_training.py", f"hydra.run.dir={folder}", *small, f"settings={settings}")
    assert result.returncode == 0, result.stderr
    return json.loads((folder / "benchmark_training.json").read_text(encoding="utf-8"))


def test_with_images_both_contestants_see_as_many_of_them(tmp_path: Path) -> None:
    few = ["data.episodes=2", f"data.cache={tmp_path}", "data.validation_fraction=0", "data.auxiliary=null"]
    written = benchmark(tmp_path, ["task=pusht_image", *few, "trainer.batch_size=8", "window.n_obs_steps=2"])
    assert {row["name"]: row["images"] for row in written["blocks"]} == {"diffpolicy": 16, "plain": 16}
    for line in written["summary"]:
        assert line["images_per_second"] == pytest.approx(16 * line["steps_per_second"])


@pytest.mark.slow
def test_contestants_start_from_the_same_loss_and_files_are_written(tmp_path: Path) -> None:
    written = benchmark(tmp_path, ["task=pusht", "diffusion=ddpm", "trainer.batch_size=64"])
    assert {line["name"] for line in written["summary"]} == {"diffpolicy", "plain"}
    assert all(line["images_per_second"] == 0 for line in written["summary"])
    with (tmp_path / "benchmark_training.csv").open() as file:
        losses = {row["name"]: float(row["loss"]) for row in csv.DictReader(file)}
    assert losses["diffpolicy"] == pytest.approx(losses["plain"], rel=0.3)  # untrained: about 1, by other noise
    assert (tmp_path / "benchmark_training.png").stat().st_size > 1000


@over(
    "override, message",
    [
        ("models=[large]", "model: 'large' is unknown, expected one of dit_small, transformer_small, unet, u"),
        ("contestants=[plain]", r"must name diffpolicy"),
        ("blocks=1", "blocks 1 must be between 2 and 1000"),
    ],
)
def test_errors_name_the_cause(tmp_path: Path, override: str, message: str) -> None:
    assert re.search(message, error_of("benchmark_training", tmp_path, override))
