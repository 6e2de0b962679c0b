"""The inference benchmark: its files, and that the contestants make the same plans.

LeRobot pins versions that this package does not. The comparison with it runs where DIFFPOLICY_LEROBOT_PYTHON names an
interpreter that has it.
"""

import csv
import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from one_case import over
from run_command import error_of, run

from diffpolicy.benchmarks.inference_worker import make_policy
from diffpolicy.benchmarks.lerobot_weights import lerobot_name
from diffpolicy.commands.benchmark_inference import timed_kernels

CONTESTANTS = ("diffpolicy", "plain", "lerobot")
LEROBOT_PYTHON = os.environ.get("DIFFPOLICY_LEROBOT_PYTHON")
SMALL = [
    "~models.unet",
    "~models.unet_medium",
    "~models.lerobot_image",
    "models.unet_small.widths=[8,16,32]",
    "models.small_image.widths=[8,16,32]",
    "threads=[1]",
    "blocks=2",
    "chunks_per_block=1",
]


def benchmark(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    return run("benchmark_inference.py", f"hydra.run.dir={folder}", *SMALL, *overrides)


def test_writes_json_csv_figure_and_the_kernels(tmp_path: Path) -> None:
    result = benchmark(tmp_path)
    assert result.returncode == 0, result.stderr
    written = json.loads((tmp_path / "benchmark_inference.json").read_text(encoding="utf-8"))
    contestants = ["diffpolicy", *(["onnx"] if find_spec("onnxruntime") else []), "plain"]
    names = [(model, 1, name) for model in ("small_image", "unet_small") for name in contestants]
    assert sorted((line["model"], line["threads"], line["name"]) for line in written["summary"]) == names
    told = [line for line in written["summary"] if line["name"] != "onnx"]
    assert all(0.0 < line["encoder_ms"] < line["wall_ms"] for line in told), "a part of a chunk"
    ours = [line for line in written["summary"] if line["name"] == "diffpolicy"]
    assert all(line["ratio"] == line["cpu_ratio"] == 1.0 for line in ours)
    with (tmp_path / "benchmark_inference.csv").open(encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == len(written["blocks"]) == len(names)
    assert (tmp_path / "benchmark_inference.png").stat().st_size > 1000
    assert (tmp_path / "benchmark_inference_kernels.txt").is_file()


def test_the_kernels_of_our_process_are_reported_per_model() -> None:
    shared = {"model": "unet", "threads": 1}
    rows = [
        {**shared, "name": "diffpolicy", "kernels": ["4 rows: packed"]},
        {**shared, "name": "lerobot", "kernels": []},
        {**shared, "name": "diffpolicy", "kernels": ["4 rows: packed", "8 rows: stored"]},
    ]
    assert timed_kernels(rows) == ["unet: 4 rows: packed", "unet: 8 rows: stored"]
    assert all("kernels" not in row for row in rows), "they are no column of the csv"


def test_lerobots_names_are_those_of_torchvisions_layers_in_a_row() -> None:
    model = {"name": "unet1d", "widths": [8, 16], "encoder": "resnet18"}
    ours = [f"encoder.{name}" for name in make_policy(model).encoder.state_dict()]
    named = dict(zip(ours, map(lerobot_name, ours), strict=True))
    assert named["encoder.eyes.0.conv1.weight"] == "encoder.backbone.0.weight"
    assert named["encoder.eyes.0.layer2.0.downsample.1.bias"] == "encoder.backbone.5.0.downsample.1.bias"
    assert named["encoder.eyes.0.layer4.1.norm2.weight"] == "encoder.backbone.7.1.bn2.weight"
    assert len(set(named.values())) == len(ours)
    assert not any("eyes" in name for name in named.values())


@over(
    "override, message",
    [
        ("peer_python=no/such/python", "peer_python: no/such/python does not exist"),
        ("blocks=1", "blocks 1 must be between 2 and 1000"),
        ("steps=30", "steps 30 must divide 100"),
        ("models.small_image.encoder=vit", "encoder 'vit' .*low_dim, resnet18"),
    ],
)
def test_errors_name_the_cause(tmp_path: Path, override: str, message: str) -> None:
    assert re.search(message, error_of("benchmark_inference", tmp_path, *SMALL, override))


def test_an_unknown_kernel_is_refused_in_one_line(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("DIFFPOLICY_KERNELS", "fast")
    assert "DIFFPOLICY_KERNELS: 'fast' is unknown" in error_of("benchmark_inference", tmp_path, *SMALL)


@pytest.mark.slow
def test_a_peer_without_the_package_is_named(tmp_path: Path) -> None:
    said = error_of("benchmark_inference", tmp_path, *SMALL, f"peer_python={sys.executable}")
    assert re.search("lerobot in .* gave no result", said)


@pytest.mark.skipif(LEROBOT_PYTHON is None, reason="DIFFPOLICY_LEROBOT_PYTHON names no interpreter with lerobot")
def test_lerobots_networks_with_our_weights_make_our_plan(tmp_path: Path) -> None:
    result = benchmark(tmp_path, f"peer_python={LEROBOT_PYTHON}", "models.small_image.encoder=resnet18")
    assert result.returncode == 0, result.stderr  # the benchmark compares the plans
    written = json.loads((tmp_path / "benchmark_inference.json").read_text(encoding="utf-8"))
    found = {(line["model"], line["name"]) for line in written["summary"]}
    assert found == {(model, name) for model in ("unet_small", "small_image") for name in (*CONTESTANTS, "onnx")}
