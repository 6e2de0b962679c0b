"""The env benchmark: its files, and that both contestants do the same work.

gym-pusht 0.1.8 needs pymunk below 7, so it cannot share an interpreter with this package. The comparison runs where
DIFFPOLICY_PEER_PYTHON names an interpreter that has it.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from one_case import over
from run_command import error_of, run
from walk import PATIENCE_S

from diffpolicy.benchmarks import env_worker

PEER_PYTHON = os.environ.get("DIFFPOLICY_PEER_PYTHON")


def benchmark(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    return run("benchmark_envs.py", f"hydra.run.dir={folder}", *overrides)


def work(python: str, name: str, seeds: list[int], steps: int) -> list[dict]:
    requests = "".join(json.dumps({"seeds": [seed], "steps": steps}) + "\n" for seed in seeds)
    command = [python, env_worker.__file__, name, "bare"]
    result = subprocess.run(command, input=requests, capture_output=True, text=True, check=True, timeout=PATIENCE_S)
    return [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]


def test_writes_json_csv_and_figure(tmp_path):
    result = benchmark(tmp_path, "blocks=2", "episodes_per_block=1", "steps_per_episode=30")
    assert result.returncode == 0, result.stderr
    written = json.loads((tmp_path / "benchmark_envs.json").read_text(encoding="utf-8"))
    assert {line["wrapping"] for line in written["summary"]} == {"made", "bare"}
    assert len((tmp_path / "benchmark_envs.csv").read_text(encoding="utf-8").splitlines()) == 1 + len(written["blocks"])
    assert (tmp_path / "benchmark_envs.png").stat().st_size > 1000


@over(
    "override, message",
    [
        ("peer_python=no/such/python", "peer_python: no/such/python does not exist"),
        ("blocks=1", "blocks 1 must be between 2 and 1000"),
    ],
)
def test_errors_name_the_cause(tmp_path, override, message):
    assert re.search(message, error_of("benchmark_envs", tmp_path, override))


def test_a_peer_without_the_package_is_named(tmp_path):
    said = error_of("benchmark_envs", tmp_path, f"peer_python={sys.executable}")
    assert re.search("gym-pusht in .* gave no result", said)


def test_a_contestant_that_talks_a_lot_is_not_held_up(tmp_path):
    peer = tmp_path / "python"
    answer = json.dumps({"seconds": 1.0, "steps": 30, "reward": 0.0, "contact": 0.0})
    peer.write_text(
        f"#!{sys.executable}\n"
        "import sys\n"
        "print('Hello.')\n"
        "for line in sys.stdin:\n"
        "    print('A warning. ' * 10_000, file=sys.stderr)\n"  # more than a pipe holds
        f"    print('{answer}', flush=True)\n",
        encoding="utf-8",
    )
    peer.chmod(0o755)
    result = benchmark(tmp_path, f"peer_python={peer}", "blocks=2", "episodes_per_block=1", "steps_per_episode=30")
    assert result.returncode == 0, result.stderr


@pytest.mark.skipif(PEER_PYTHON is None, reason="DIFFPOLICY_PEER_PYTHON does not name an interpreter with gym_pusht")
def test_episodes_are_gym_pushts():
    seeds = list(range(20))
    ours = work(sys.executable, "diffpolicy", seeds, 300)
    theirs = work(str(PEER_PYTHON), "gym-pusht", seeds, 300)
    for seed, own, other in zip(seeds, ours, theirs, strict=True):
        # The same physics from two releases of the engine; coverage is exact in both.
        assert own["reward"] == pytest.approx(other["reward"], abs=1e-9), f"seed {seed}"
