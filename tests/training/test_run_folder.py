"""A run folder belongs to one process at a time, and what it holds is found again however it was copied."""

import dataclasses
import random
import shutil
from pathlib import Path

import pytest
import torch
from walk import PATIENCE_S, logged_steps, record, settings, start, tensors, wait_for

from diffpolicy.training.settings import TrainConfig
from diffpolicy.training.trainer import Trainer

RARELY = {"validate_every": 1000, "steps": 12, "checkpoint_every": 4, "log_every": 1}


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp("data") / "walk.zarr")


@pytest.fixture(scope="module")
def whole(data_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    torch.set_num_threads(1)
    Trainer(settings(data_set, trainer=RARELY), folder).run()
    return folder


def assert_same_run(first: Path, second: Path) -> None:
    assert (first / "metrics.jsonl").read_text() == (second / "metrics.jsonl").read_text()
    names = [sorted(path.name for path in (folder / "checkpoints").iterdir()) for folder in (first, second)]
    assert names[0] == names[1]
    for name in ("step_8", "step_12", "last"):
        expected, found = (tensors(folder / "checkpoints" / name) for folder in (first, second))
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[key], found[key]) for key in expected), name


def compete(config: TrainConfig, folder: Path, count: int) -> list[int | None]:
    """Start `count` runs in one folder at once; returns their exit statuses."""
    processes = [start(config, folder) for _ in range(count)]
    for process in processes:
        process.join(PATIENCE_S)
    return sorted(process.exitcode for process in processes)


def cut(config: TrainConfig, folder: Path, at_step: int) -> None:
    """Kill a run at a step."""
    process = start(config, folder, wait_at=config.trainer.steps - 1)
    wait_for(lambda: logged_steps(folder) >= at_step, process.is_alive)
    process.kill()
    process.join()


@pytest.mark.parametrize("tries", [1, pytest.param(50, marks=pytest.mark.slow)])
def test_of_two_or_three_runs_in_one_folder_one_trains_and_nothing_is_mixed(
    data_set: Path, whole: Path, tmp_path: Path, tries: int
) -> None:
    config, draw = settings(data_set, trainer=RARELY), random.Random(0)
    for number in range(tries):
        folder, count = tmp_path / str(number) / "run", 2 + number % 2
        assert compete(config, folder, count) == [0] + [1] * (count - 1)
        assert_same_run(whole, folder)
        error = (folder.parent / "error").read_text()
        assert "is in use by process" in error or "holds a run" in error
        shutil.rmtree(folder.parent)
        cut(config, folder, draw.randrange(5, 11))
        statuses = compete(dataclasses.replace(config, resume=True), folder, count)
        assert statuses[0] == 0
        assert_same_run(whole, folder)
        shutil.rmtree(folder.parent)


def test_a_folder_that_another_process_trains_in_is_refused_naming_it(data_set: Path, tmp_path: Path) -> None:
    config = settings(data_set, trainer=RARELY)
    process = start(config, tmp_path / "run", wait_at=6)
    wait_for(lambda: logged_steps(tmp_path / "run") >= 5, process.is_alive)
    message = rf"{tmp_path / 'run'} is in use by process {process.pid} on .*, started 20"
    try:
        with pytest.raises(BlockingIOError, match=message):
            Trainer(dataclasses.replace(config, resume=True), tmp_path / "run")
    finally:
        (tmp_path / "go").touch()
        process.join()
    assert process.exitcode == 0
    assert not (tmp_path / "run" / ".lock").exists()


def copied(run: Path, target: Path) -> Path:
    """Copy a run with its links followed, as cp -rL does."""
    return Path(shutil.copytree(run, target, symlinks=False))


def without_last(run: Path, target: Path) -> Path:
    shutil.copytree(run, target, symlinks=True)
    (target / "checkpoints" / "last").unlink()
    return target


def with_only_the_copy(run: Path, target: Path) -> Path:
    shutil.rmtree(copied(run, target) / "checkpoints" / "step_8")
    return target


@pytest.mark.parametrize("change", [copied, without_last, with_only_the_copy])
def test_a_run_goes_on_though_its_link_was_lost_or_copied_as_a_folder(
    data_set: Path, whole: Path, tmp_path: Path, change
) -> None:
    shutil.copytree(whole, tmp_path / "cut", symlinks=True)
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "step_12")
    for name in ("last", "best"):
        (tmp_path / "cut" / "checkpoints" / name).unlink()
        (tmp_path / "cut" / "checkpoints" / name).symlink_to("step_8")
    folder = change(tmp_path / "cut", tmp_path / "run")
    with pytest.raises(ValueError, match="holds a run; add resume=true"):
        Trainer(settings(data_set, trainer=RARELY), folder)
    with pytest.warns(UserWarning, match=r"last was missing or not a link; it now points to step_8, the newest"):
        Trainer(settings(data_set, trainer=RARELY, resume=True), folder).run()
    assert_same_run(whole, folder)
    assert (folder / "checkpoints" / "last").readlink() == Path("step_12")


def test_a_folder_named_last_that_holds_no_checkpoint_is_refused(data_set: Path, whole: Path, tmp_path: Path) -> None:
    folder = copied(whole, tmp_path / "run")
    (folder / "checkpoints" / "last" / "config.json").unlink()
    with pytest.raises(ValueError, match=r"last is a folder, but no whole checkpoint .*; remove it"):
        Trainer(settings(data_set, trainer=RARELY, resume=True), folder)
    shutil.rmtree(folder / "checkpoints" / "last")
    with pytest.warns(UserWarning, match=r"last was missing or not a link; it now points to step_12"):
        assert Trainer(settings(data_set, trainer=RARELY, resume=True), folder).step == 12
