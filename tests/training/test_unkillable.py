"""Whatever ends a run, what it saved is intact, and resuming gives the weights of a run without interruption."""

import dataclasses
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from walk import logged_steps, record, settings, start, tensors, wait_for

from diffpolicy import DiffusionPolicy
from diffpolicy.evaluation.settings import EnvConfig
from diffpolicy.system import checkpoint
from diffpolicy.training.settings import EvaluationConfig, TrainConfig
from diffpolicy.training.trainer import Trainer

RARELY = {"validate_every": 1000}  # its plot takes longer than all the steps


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp("data") / "walk.zarr")


def last(folder: Path) -> Path:
    return folder / "checkpoints" / "last"


def begin_or_resume(config: TrainConfig, folder: Path, **limits: int):
    return start(dataclasses.replace(config, resume=os.path.lexists(last(folder))), folder, **limits)


def assert_same_run(first: Path, second: Path) -> None:
    expected, found = tensors(last(first)), tensors(last(second))
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name
    assert (first / "metrics.jsonl").read_text() == (second / "metrics.jsonl").read_text()


def uninterrupted(config: TrainConfig, folder: Path) -> Path:
    process = start(config, folder)
    process.join()
    assert process.exitcode == 0
    return folder


@pytest.mark.parametrize(
    ("kills", "steps"), [(3, 60), pytest.param(20, 240, marks=pytest.mark.slow)], ids=["3 kills", "20 kills"]
)
def test_a_run_killed_at_random_moments_ends_with_the_same_weights(
    data_set: Path, tmp_path: Path, kills: int, steps: int
) -> None:
    """Checkpoints every other step: many kills hit a write, a swap of links or a resume."""
    config = settings(data_set, trainer={**RARELY, "log_every": 1, "checkpoint_every": 2, "steps": steps})
    draw = random.Random(kills)
    for at_step in sorted(draw.sample(range(1, steps - 20), kills)):
        process = begin_or_resume(config, tmp_path / "cut", wait_at=steps - 5)
        wait_for(lambda at_step=at_step: logged_steps(tmp_path / "cut") >= at_step, process.is_alive)
        time.sleep(draw.uniform(0.0, 0.02))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    process = begin_or_resume(config, tmp_path / "cut")
    process.join()
    assert process.exitcode == 0
    assert_same_run(uninterrupted(config, tmp_path / "whole"), tmp_path / "cut")
    assert not list((tmp_path / "cut" / "checkpoints").glob(".step_*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_saves_the_step_and_the_run_goes_on_from_it(data_set: Path, tmp_path: Path, number: int) -> None:
    config = settings(data_set, trainer={**RARELY, "steps": 40, "log_every": 7, "checkpoint_every": 1000})
    process = begin_or_resume(config, tmp_path / "cut", wait_at=30)
    wait_for(lambda: logged_steps(tmp_path / "cut") >= 1, process.is_alive)
    os.kill(process.pid, number)
    os.kill(process.pid, number)  # torchrun repeats what the terminal has sent
    (tmp_path / "go").touch()
    process.join()
    assert process.exitcode == 128 + number
    step = DiffusionPolicy.from_pretrained(last(tmp_path / "cut")).metadata["step"]
    assert 7 <= step < 40
    process = begin_or_resume(config, tmp_path / "cut")
    process.join()
    assert process.exitcode == 0
    assert_same_run(uninterrupted(config, tmp_path / "whole"), tmp_path / "cut")


def test_the_script_says_how_to_go_on(repository: Path, data_set: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(repository / "scripts" / "train_policy.py"), "task=custom", "device=cpu"]
    command += [f"data.path={data_set}", "data.observations={state: [state]}", "model.widths=[8,16]"]
    command += ["trainer.log_every=1", "trainer.steps=100000", f"hydra.run.dir={tmp_path}"]
    with subprocess.Popen(command, cwd=repository, stderr=subprocess.PIPE, text=True) as process:
        wait_for(lambda: logged_steps(tmp_path) >= 1, lambda: process.poll() is None)
        process.terminate()
        said = process.communicate()[1]
    assert process.returncode == 143
    step = DiffusionPolicy.from_pretrained(last(tmp_path)).metadata["step"]
    assert said.splitlines()[-1] == (
        f"SIGTERM: step {step} of 100000 is saved; to resume, run the same command with resume=true "
        f"hydra.run.dir={tmp_path}"
    )


def test_a_full_disk_leaves_the_checkpoint_before(data_set: Path, tmp_path: Path) -> None:
    """A limit on the size of files stops the write half-way, as a full disk does."""
    config, folder = settings(data_set, trainer={**RARELY, "steps": 32}), tmp_path / "cut"
    process = start(config, folder, wait_at=20)
    wait_for(last(folder).exists, process.is_alive)
    process.kill()
    process.join()
    name = last(folder).readlink()
    process = begin_or_resume(config, folder, file_bytes=16_384)
    process.join()
    said = (tmp_path / "error").read_text()
    assert said.startswith("OSError: training, step "), said
    assert "File too large" in said
    assert f"{name}, the last one written, is intact: resume from it with resume=true hydra.run.dir={folder}" in said
    assert last(folder).readlink() == name
    assert not list(folder.glob("checkpoints/.step_*"))
    process = begin_or_resume(config, folder)
    process.join()
    assert process.exitcode == 0
    assert_same_run(uninterrupted(config, tmp_path / "whole"), folder)


def damage(folder: Path, how: str) -> None:
    path = folder / "training_state.safetensors"
    if how == "flipped bit":
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif how == "half a file":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif how == "no config":
        (folder / "config.json").unlink()
    else:
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def whole(data_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    Trainer(settings(data_set, trainer=RARELY), folder).run()
    return folder


@pytest.mark.parametrize(
    "how",
    ["flipped bit", *(pytest.param(one, marks=pytest.mark.slow) for one in ("half a file", "no config", "no folder"))],
)
def test_a_damaged_checkpoint_is_refused_and_the_good_one_before_it_named(
    data_set: Path, whole: Path, tmp_path: Path, how: str
) -> None:
    shutil.copytree(whole, tmp_path / "cut", symlinks=True)
    checkpoints = tmp_path / "cut" / "checkpoints"
    damage(checkpoints / "step_24", how)
    resumed = settings(data_set, trainer=RARELY, resume=True)
    advice = f"step_16 is intact: to resume from it, run `ln -sfn step_16 {checkpoints / 'last'}`"
    with pytest.raises(ValueError, match=advice):
        Trainer(resumed, tmp_path / "cut")
    subprocess.run(["ln", "-sfn", "step_16", str(checkpoints / "last")], check=True)
    Trainer(resumed, tmp_path / "cut").run()
    assert_same_run(whole, tmp_path / "cut")


def test_where_no_checkpoint_is_whole_that_is_said(data_set: Path, tmp_path: Path) -> None:
    Trainer(settings(data_set, trainer={"steps": 1}), tmp_path).run()
    damage(last(tmp_path), "half a file")
    with pytest.raises(ValueError, match="no other checkpoint of this run can be resumed from"):
        Trainer(settings(data_set, trainer={"steps": 1}, resume=True), tmp_path)


def test_only_the_newest_two_keep_what_resuming_needs(whole: Path) -> None:
    states = sorted(path.parent.name for path in whole.glob("checkpoints/step_*/training_state.safetensors"))
    assert states == ["step_16", "step_24"]
    assert DiffusionPolicy.from_pretrained(whole / "checkpoints" / "step_8").metadata["step"] == 8


def test_data_that_vanished_are_named_and_the_checkpoint_stays(data_set: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(data_set, tmp_path / "data.zarr"))
    Trainer(settings(data, trainer={"steps": 1}), tmp_path / "run").run()
    shutil.rmtree(data)
    with pytest.raises(FileNotFoundError, match=r"data\.zarr' not found; looked at"):
        Trainer(settings(data, trainer={"steps": 1}, resume=True), tmp_path / "run")
    record(data)
    assert Trainer(settings(data, trainer={"steps": 1}, resume=True), tmp_path / "run").step == 1


class Walk(gymnasium.Env):
    """Three steps an episode; where FOLDER/event says so, its process dies or is asked to stop."""

    observation_space = gymnasium.spaces.Dict({"state": gymnasium.spaces.Box(-1, 1, (2,))})
    action_space = gymnasium.spaces.Box(-1, 1, (1,))

    def __init__(self, folder: str, render_mode: str | None = None) -> None:
        self._event = Path(folder) / "event"

    def reset(self, *, seed=None, options=None):
        self._left = 3
        return {"state": np.zeros(2, dtype=np.float32)}, {}

    def step(self, action):
        if self._event.exists() and self._left == 2:
            if self._event.read_text() == "death":
                raise EOFError  # as the pipe to a dead process does
            os.kill(os.getpid(), signal.SIGTERM)
        self._left -= 1
        return {"state": np.zeros(2, dtype=np.float32)}, float(action[0]), self._left == 0, False, {}


def with_evaluation(data_set: Path, folder: Path, resume: bool = False) -> TrainConfig:
    if "test/Walk-v0" not in gymnasium.registry:
        gymnasium.register("test/Walk-v0", Walk)
    env = EnvConfig("test/Walk-v0", kwargs={"folder": str(folder)})
    changes = {**RARELY, "steps": 16, "log_every": 5, "evaluate_every": 9, "checkpoint_every": 8}
    return settings(data_set, env=env, evaluation=EvaluationConfig(episodes=2), trainer=changes, resume=resume)


@pytest.mark.parametrize("event", ["death", pytest.param("signal", marks=pytest.mark.slow)])
def test_an_evaluation_that_breaks_off_is_saved_before_and_made_again(
    data_set: Path, tmp_path: Path, event: str
) -> None:
    Trainer(with_evaluation(data_set, tmp_path), tmp_path / "whole").run()
    (tmp_path / "event").write_text(event)
    trainer = Trainer(with_evaluation(data_set, tmp_path), tmp_path / "cut")
    if event == "death":
        message = r"training, step 9: the evaluation failed because an env died .*step_9, .* is intact: resume from it"
        with pytest.raises(ChildProcessError, match=message):
            trainer.run()
    else:
        assert trainer.run() == signal.SIGTERM
    assert last(tmp_path / "cut").readlink() == Path("step_9")
    (tmp_path / "event").unlink()
    again = with_evaluation(data_set, tmp_path, resume=True)
    Trainer(again, tmp_path / "cut").run()
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "step_16")  # as if killed after the evaluation, before step 16
    checkpoint.point(last(tmp_path / "cut"), last(tmp_path / "cut").with_name("step_9"))
    assert Trainer(again, tmp_path / "cut").run() is None
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    best = [(tmp_path / name / "checkpoints" / "best").readlink() for name in ("whole", "cut")]
    assert best[0] == best[1]


def test_weights_that_are_not_finite_are_not_saved_on_a_signal(data_set: Path, tmp_path: Path) -> None:
    class Diverging(Trainer):
        def train_step(self):
            if self.step == 10:
                os.kill(os.getpid(), signal.SIGTERM)
            loss, norm = super().train_step()
            return loss * float("nan"), norm

    with pytest.raises(FloatingPointError, match="no checkpoint had been written yet"):
        Diverging(settings(data_set, trainer={**RARELY, "log_every": 20, "checkpoint_every": 20}), tmp_path).run()
    assert not (tmp_path / "checkpoints").exists()
