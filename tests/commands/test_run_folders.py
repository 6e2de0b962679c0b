"""Every run has a folder of its own, a folder that cannot be one is refused, and a bad job does not end a sweep."""

import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core import utils
from hydra.core.hydra_config import HydraConfig
from one_case import over
from run_command import REPOSITORY, error_of, run
from walk import PATIENCE_S, record

from diffpolicy import DiffusionPolicy
from diffpolicy.commands import train_policy  # noqa: F401 # stores its schema
from diffpolicy.commands.run_folders import RunFolders


def test_runs_that_start_in_the_same_second_get_a_folder_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Noon:
        @staticmethod
        def now() -> datetime:
            return datetime(2030, 1, 1, 12)

    monkeypatch.setattr(utils, "datetime", Noon)
    monkeypatch.chdir(tmp_path)
    names = []
    for kind, begin in [("run", "on_run_start")] * 3 + [("sweep", "on_multirun_start")] * 2:
        with initialize_config_dir(str(REPOSITORY / "configs"), version_base="1.3"):
            utils.setup_globals()
            settings = compose("train", return_hydra_config=True)
        HydraConfig.instance().set_config(settings)
        getattr(RunFolders(), begin)(config=settings)
        names.append(settings.hydra[kind].dir)
    first = "outputs/pusht/2030-01-01_12-00-00"
    assert names == [first, *(f"{first}_{number}" for number in (2, 3, 4, 5))]
    assert sorted(str(path) for path in Path("outputs/pusht").iterdir()) == names


def test_a_run_folder_that_is_a_file_is_one_clear_message(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        result = run("train_policy.py", f"hydra.run.dir={folder}")
        assert result.returncode == 1
        assert result.stderr == f"error: hydra.run.dir: {folder} cannot be a folder: it is a file; choose another one\n"


NONSENSE = {
    "seed": (["seed=-1"], "seed -1 must be between 0 and 4000000000"),
    "evaluation seed": (["evaluation.seed=-1"], "evaluation: seed -1 must be between 0 and 4000000000"),
    "no env": (["env.id="], "cannot be made: Malformed environment ID"),
    "no module": (["env.id=:x"], "env: :x "),
    "limit": (["limits.env_s=0"], "limits: env_s 0.0 must be above 0 and at most 1000000"),
}


@over("arguments, message", NONSENSE)
def test_settings_that_make_no_sense_are_named(tmp_path: Path, arguments: list[str], message: str) -> None:
    assert message in error_of("train_policy", tmp_path, *arguments)


def check_sweep(result: subprocess.CompletedProcess[str], sweep: Path) -> None:
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    for job, step in ((0, 2), (2, 3)):
        policy = DiffusionPolicy.from_pretrained(sweep / str(job) / "checkpoints" / "last")
        assert policy.metadata["step"] == step
    (line,) = (sweep / "failed.txt").read_text().splitlines()
    assert line.startswith("1: ")
    assert "trainer.steps=-1" in line
    assert line.endswith("trainer: steps -1 must be between 1 and 1000000000")
    assert line in result.stderr.splitlines()


@pytest.mark.parametrize(
    "launcher",
    [[], pytest.param(["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"], marks=pytest.mark.slow)],
    ids=["basic", "joblib"],
)
def test_a_bad_job_of_a_sweep_leaves_the_others_alone_and_is_listed(tmp_path: Path, launcher: list[str]) -> None:
    data, sweep = record(tmp_path / "walk.zarr"), tmp_path / "sweep"
    settings = ["task=custom", f"data.path={data}", "data.observations={state: [state]}", "device=cpu"]
    settings += ["model.widths=[8,16]", "trainer.steps=2,-1,3", *launcher, f"hydra.sweep.dir={sweep}", "-m"]
    if launcher:
        script = [sys.executable, str(REPOSITORY / "scripts" / "train_policy.py")]
        check_sweep(subprocess.run([*script, *settings], capture_output=True, text=True, timeout=PATIENCE_S), sweep)
    else:
        check_sweep(run("train_policy.py", *settings), sweep)


WRITES_TO_CLOSED_STREAMS = """
import os, sys
from diffpolicy.commands.run_folders import open_standard_streams
open_standard_streams()
from tqdm import tqdm
list(tqdm(range(3)))
print("lost")
print("lost", file=sys.stderr)
with open(sys.argv[1], "w") as file:
    assert file.fileno() > 2, "what is written to stderr would end up in the file"
    file.write("kept")
"""


@pytest.mark.skipif(os.name == "nt", reason="needs a shell")
def test_a_command_needs_no_open_streams(tmp_path: Path) -> None:
    closed = ["sh", "-c", '"$@" 2>&- >&-', "sh", sys.executable, "-c", WRITES_TO_CLOSED_STREAMS, str(tmp_path / "file")]
    assert subprocess.run(closed, timeout=PATIENCE_S).returncode == 0
    assert (tmp_path / "file").read_text() == "kept"
