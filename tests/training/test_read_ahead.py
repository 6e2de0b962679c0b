"""Batches read from disk are the batches that would be cut in memory, and whatever happens to the data is told."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from walk import CONTEXT, PATIENCE_S, record, settings, tensors, wait_for

from diffpolicy import DiffusionPolicy
from diffpolicy.data.demonstrations import load_demonstrations
from diffpolicy.data.replay_buffer import ReplayBuffer
from diffpolicy.policy.settings import WindowConfig
from diffpolicy.system.pixels import PixelFormat
from diffpolicy.training.batches import Batch, WindowBatches
from diffpolicy.training.read_ahead import AHEAD
from diffpolicy.training.settings import DataConfig
from diffpolicy.training.trainer import Trainer

WINDOW = WindowConfig(horizon=8, n_obs_steps=2, n_action_steps=4)
OBSERVATIONS = {"image": ["image"], "state": ["state"]}
ROWS = 80
GENERATOR = np.random.default_rng(0)
ARRAYS = {
    "action": GENERATOR.normal(size=(ROWS, 2)).astype("float32"),
    "state": GENERATOR.normal(size=(ROWS, 3)).astype("float32"),
    "image": GENERATOR.integers(0, 256, size=(ROWS, 128, 96, 3), dtype="uint8"),
}
ENDS = [10, 45, 80]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three episodes; 28 images to a chunk."""
    path = tmp_path_factory.mktemp("data") / "images.zarr"
    buffer = ReplayBuffer.create(path, {key: (array.shape[1:], array.dtype) for key, array in ARRAYS.items()})
    for start, stop in zip([0, *ENDS], ENDS, strict=False):
        buffer.append_episode({key: array[start:stop] for key, array in ARRAYS.items()})
    return path


def batches(path: Path, workers: int, stream: tuple[str, ...] = ("image",)) -> WindowBatches:
    data = load_demonstrations(path, OBSERVATIONS, stream=stream, images={"image": PixelFormat()})
    return WindowBatches(data, np.arange(3), WINDOW, 8, 0, torch.device("cpu"), workers)


def expected(batch: Batch) -> np.ndarray:
    """The rows of a batch, told by its actions."""
    wanted = batch.actions.numpy()[:, :2]
    return (wanted[:, :, None] == ARRAYS["action"]).all(-1).argmax(-1)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_images_come_as_they_are_stored_beside_the_observations_of_the_same_steps(images: Path, workers: int) -> None:
    found = batches(images, workers)
    try:
        for step in [0, 1, found.steps_per_epoch]:  # and on to another epoch
            batch = found.batch(step)
            rows = expected(batch)
            assert batch.observations["image"].dtype == torch.uint8
            assert batch.observations["image"].shape == (8, 2, 128, 96, 3)
            np.testing.assert_array_equal(batch.observations["image"].numpy(), ARRAYS["image"][rows])
            np.testing.assert_array_equal(batch.observations["state"].numpy(), ARRAYS["state"][rows])
    finally:
        found.close()


def test_where_an_observation_lies_changes_no_batch(images: Path) -> None:
    found, both = batches(images, 0), batches(images, 0, ("image", "state"))
    for step in (0, 5, found.steps_per_epoch):
        part = slice(2, 6)  # that of one of several processes
        one, other = found.batch(step, part), both.batch(step, part)
        assert torch.equal(one.actions, other.actions)
        assert all(torch.equal(one.observations[key], other.observations[key]) for key in OBSERVATIONS)
        np.testing.assert_array_equal(one.actions.numpy(), found.batch(step).actions.numpy()[part])
    assert all(torch.equal(found.first(9).observations[k], both.first(9).observations[k]) for k in OBSERVATIONS)


def test_no_more_batches_are_read_ahead_than_promised(images: Path) -> None:
    found = batches(images, 1)
    try:
        for step in range(3):
            found.batch(step)
            assert len(found._ahead._reading) == AHEAD
    finally:
        found.close()


def write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


DAMAGE = {
    "vanished": (lambda chunk: chunk.unlink(), r"chunk data/image/c/1/0/0/0 is missing"),
    "half": (lambda chunk: write(chunk, chunk.read_bytes()[:-100]), r"array 'image': truncated or corrupt"),
    "flipped bit": (lambda chunk: write(chunk, chunk.read_bytes()[:-9] + bytes(9)), r"truncated or corrupt.*hecksum"),
}


def read(found: WindowBatches, steps: range) -> None:
    for step in steps:
        found.batch(step)


@pytest.mark.parametrize("how", DAMAGE)
def test_a_chunk_that_goes_bad_midway_is_an_error_that_names_it(images: Path, tmp_path: Path, how: str) -> None:
    path = Path(shutil.copytree(images, tmp_path / "images.zarr"))
    found = batches(path, 0)
    read(found, range(1))
    damage, message = DAMAGE[how]
    damage(path / "data" / "image" / "c" / "1" / "0" / "0" / "0")
    with pytest.raises(OSError, match=rf"(?s)^data cannot be read: .*images\.zarr.*{message}"):
        read(found, range(1, 10))


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp("data") / "walk.zarr")


def streamed(data_set: Path, workers: int = 0, **changes):
    data = DataConfig(
        str(data_set), observations={"state": ["state"]}, validation_fraction=0.2, stream=["state"], workers=workers
    )
    return settings(data_set, data=data, **changes)


@pytest.mark.slow  # with one worker, and broken off midway: the next test
def test_training_from_disk_gives_the_bit_same_weights(data_set: Path, tmp_path: Path) -> None:
    Trainer(settings(data_set), tmp_path / "memory").run()
    Trainer(streamed(data_set, 2), tmp_path / "disk").run()
    memory, disk = (tensors(tmp_path / name / "checkpoints" / "last") for name in ("memory", "disk"))
    assert memory.keys() == disk.keys()
    assert all(torch.equal(memory[name], disk[name]) for name in memory)
    assert not multiprocessing.active_children()


def test_a_signal_ends_the_workers_and_the_run_goes_on_from_memory_too(data_set: Path, tmp_path: Path) -> None:
    class Stopped(Trainer):
        def train_step(self):
            if self.step == 10:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().train_step()

    assert Stopped(streamed(data_set, 1), tmp_path / "cut").run() == signal.SIGTERM
    assert not multiprocessing.active_children()
    Trainer(settings(data_set, resume=True), tmp_path / "cut").run()
    Trainer(settings(data_set), tmp_path / "whole").run()
    cut, whole = (tensors(tmp_path / name / "checkpoints" / "last") for name in ("cut", "whole"))
    assert all(torch.equal(cut[name], whole[name]) for name in whole)


def test_data_that_vanish_midway_leave_the_checkpoint_and_say_how_to_go_on(data_set: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(data_set, tmp_path / "data.zarr"))

    class Robbed(Trainer):
        def train_step(self):
            if self.step == 10:
                shutil.rmtree(data / "data")
            return super().train_step()

    message = r"training, step 1\d: data cannot be read: .*data\.zarr.*missing.*step_8, .* is intact: resume from it"
    with pytest.raises(OSError, match=message):
        Robbed(streamed(data, 1), tmp_path / "run").run()
    assert not multiprocessing.active_children()
    assert DiffusionPolicy.from_pretrained(tmp_path / "run" / "checkpoints" / "last").metadata["step"] == 8


def hang(images: Path, told: Path) -> None:
    found = batches(images, 2)
    found.batch(0)
    told.with_suffix(".partial").write_text(json.dumps([child.pid for child in multiprocessing.active_children()]))
    told.with_suffix(".partial").rename(told)
    time.sleep(PATIENCE_S)


def is_running(pid: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")


def test_workers_end_with_a_trainer_that_is_killed(images: Path, tmp_path: Path) -> None:
    process = CONTEXT.Process(target=hang, args=(images, tmp_path / "pids"))
    process.start()
    wait_for((tmp_path / "pids").exists, process.is_alive)
    pids = json.loads((tmp_path / "pids").read_text())
    process.kill()
    process.join()
    assert len(pids) == 2
    wait_for(lambda: not any(map(is_running, pids)), lambda: True)


def test_images_are_refused_by_name_where_no_network_sees_them(images: Path, tmp_path: Path) -> None:
    data = DataConfig(str(images), observations=OBSERVATIONS, stream=["image"], images={"image": {}})
    with pytest.raises(ValueError, match="encoder low_dim: observation 'image' is an image, expected vectors only"):
        Trainer(settings(images, data=data), tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stream": ["picture"]}, r"stream names \['picture'\], expected some of \['state'\]"),
        ({"workers": -1}, r"data: workers -1 must be between 0 and 256"),
    ],
)
def test_settings_that_cannot_work_are_refused(data_set: Path, tmp_path: Path, changes: dict, message: str) -> None:
    data = DataConfig(str(data_set), observations={"state": ["state"]}, **changes)
    with pytest.raises(ValueError, match=message):
        Trainer(settings(data_set, data=data), tmp_path / "run")
