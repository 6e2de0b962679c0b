"""A process killed at any moment of an append or a drop leaves a readable buffer of whole episodes."""

import ast
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import zarr

from diffpolicy.data import replacing
from diffpolicy.data.replay_buffer import ReplayBuffer

KILLS = 15
WRITER = Path(__file__).with_name("crashing_writer.py")
SPECS = {"tag": ((), "int64"), "step": ((), "int64"), "wide": ((40,), "float32")}


def open_after_crash(path: Path, mode: str = "r") -> ReplayBuffer:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the notices about unfinished rows and swaps
        return ReplayBuffer.open(path, mode)


def assert_whole_episodes(buffer: ReplayBuffer) -> set[int]:
    """Every episode has its full length and holds only its own rows; returns the episodes' tags."""
    for i, attributes in enumerate(buffer.episode_attributes):
        arrays = buffer.episode(i)
        assert set(arrays["tag"].tolist()) == {attributes["tag"]}
        np.testing.assert_array_equal(arrays["step"], np.arange(attributes["length"]))
        np.testing.assert_array_equal(arrays["wide"][:, 39], np.arange(attributes["length"]))
    return {attributes["tag"] for attributes in buffer.episode_attributes}


def assert_nothing_acknowledged_is_lost(tags: set[int], log: list[str]) -> None:
    told = {name: [] for name in ("appended", "dropping", "dropped")}
    for line in log:
        name, what = line.split(" ", 1)
        told[name] += np.atleast_1d(ast.literal_eval(what)).tolist()
    assert set(told["appended"]) - set(told["dropping"]) <= tags
    assert not set(told["dropped"]) & tags


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
def test_a_killed_writer_leaves_whole_episodes(tmp_path):
    path, log = tmp_path / "buffer.zarr", tmp_path / "log.txt"
    ReplayBuffer.create(path, SPECS)
    log.touch()
    random = np.random.default_rng(0)
    command = [sys.executable, str(WRITER), str(path), str(log)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdin is not None
        assert writer.stdout is not None
        for _ in range(KILLS):
            print(random.integers(0, 4), random.uniform(0, 0.12), file=writer.stdin, flush=True)
            assert writer.stdout.readline() == "killed\n"
            tags = assert_whole_episodes(open_after_crash(path))
            assert_nothing_acknowledged_is_lost(tags, log.read_text().splitlines())
        writer.stdin.close()
    lines = log.read_text().splitlines()
    for done in ("appended", "dropped"):
        assert any(line.startswith(done) for line in lines)
    open_after_crash(path, "a")
    assert {each.name for each in tmp_path.iterdir()} == {"buffer.zarr", "log.txt"}


class Killed(BaseException):
    """Stands for SIGKILL at one exact point; no handler of the library may catch it and carry on."""


@pytest.mark.parametrize(
    "point", ["before the old one is moved", "between the renames", "before the old one is removed"]
)
def test_a_drop_stopped_at_each_step_of_the_swap_is_finished_on_open(recorded, monkeypatch, make_episode, point):
    def swap(path: Path) -> None:
        if point != "before the old one is moved":
            os.rename(path, replacing.previous_of(path))
        if point == "before the old one is removed":
            os.rename(replacing.next_of(path), path)
        raise Killed

    monkeypatch.setattr(replacing, "swap", swap)
    with pytest.raises(Killed):
        ReplayBuffer.open(recorded, mode="a").drop_episodes([0])
    monkeypatch.undo()
    buffer = open_after_crash(recorded)
    kept = [0, 1, 2] if point == "before the old one is moved" else [1, 2]
    assert [each["seed"] for each in buffer.episode_attributes] == kept
    buffer = ReplayBuffer.open(recorded, mode="a")
    buffer.drop_episodes([0])
    np.testing.assert_array_equal(buffer.episode(buffer.n_episodes - 1)["state"], make_episode(6, 2)["state"])
    assert [each.name for each in recorded.parent.iterdir()] == [recorded.name]


def test_what_a_drop_left_that_was_killed_in_the_middle_of_any_of_its_files_is_removed(recorded):
    """zarr writes FILE.json as FILE.UUID.partial first."""
    unfinished = f"zarr.{'0a' * 16}.partial"
    for at in ("", "data", "meta/episode_ends"):
        left = recorded.with_name(f".recorded.zarr.next.{'1b' * 16}.partial")
        shutil.copytree(recorded, left)
        (left / at / unfinished).touch()
        ReplayBuffer.open(recorded, mode="a")
        assert [each.name for each in recorded.parent.iterdir()] == [recorded.name], at


def test_opening_leaves_foreign_files_alone(recorded, tmp_path):
    """What is not a buffer of ours, and what has only a name like that of one of our leftovers."""
    theirs = tmp_path / "theirs.zarr"
    zarr.create_group(theirs)
    foreign = [
        theirs / "x.partial",
        theirs / f"{'0' * 32}.partial",
        tmp_path / "folder" / f"x.{'0' * 32}.partial",
        recorded / "x.partial",
        tmp_path / ".recorded.zarr.previous" / "x",
        tmp_path / ".recorded.zarr.next" / "x",
        tmp_path / ".recorded.zarr.next.txt",
        tmp_path / ".missing.previous" / "x",
    ]
    for file in foreign:
        file.parent.mkdir(exist_ok=True)
        file.touch()
    for path in (theirs, tmp_path / "folder"):
        with pytest.raises(ValueError, match=r"zarr group|no group 'data'"):
            ReplayBuffer.open(path, mode="a")
    with pytest.raises(FileNotFoundError):
        ReplayBuffer.open(tmp_path / "missing")
    ReplayBuffer.open(recorded, mode="a")
    assert [file for file in foreign if not file.exists()] == []


def test_rows_past_the_last_end_are_left_out_with_a_notice(recorded, make_episode):
    root = zarr.open_group(recorded, mode="r+")
    root["data/action"].resize((300, 2))
    root["meta/episode_ends"].resize((4,))
    with pytest.warns(UserWarning, match=r"ignoring 289 rows past the last episode end \(11\)"):
        buffer = ReplayBuffer.open(recorded, mode="a")
    assert buffer["action"].shape == (11, 2)
    assert buffer.n_episodes == 3
    buffer.append_episode(make_episode(5, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(ReplayBuffer.open(recorded).episode(3)["state"], make_episode(5, 3)["state"])


def test_a_failed_pack_leaves_the_old_zip_and_nothing_else(recorded, tmp_path, monkeypatch):
    target = tmp_path / "old.zip"
    target.write_text("old")
    shutil.rmtree(recorded / "data" / "action" / "c")
    buffer_root = zarr.open_group(recorded, mode="r+")
    buffer_root["data/action"][:] = np.nan
    with pytest.raises(ValueError, match="NaN or inf in episode 0 at step 0"):
        ReplayBuffer.open(recorded).pack(target)
    assert target.read_text() == "old"
    assert {each.name for each in tmp_path.iterdir()} == {recorded.name, "old.zip"}
