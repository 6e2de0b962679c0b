"""Data sets that the packages of the formats made are read number by number, converted, and trained from."""

from pathlib import Path

import numpy as np
import pytest
import torch
from made import FPS, LENGTHS, TASKS, episode

from diffpolicy.data.demonstrations import load_demonstrations
from diffpolicy.data.replay_buffer import ReplayBuffer
from diffpolicy.formats import convert, open_recording, recognise
from diffpolicy.formats.recording import Recording
from diffpolicy.formats.table import WriteSettings
from diffpolicy.system.pixels import PixelFormat
from diffpolicy.training.data_formats import FORMATS as TRAINING

FIXTURES = Path(__file__).parent / "fixtures"
LOSS = 20  # of a pixel, by AV1 at the quality that LeRobot takes; found: 15
VECTORS = {"action": "action", "observation.state": "observation.state"}
MORE = {"observation.grid": "observation.grid", "next.reward": "next.reward", "next.done": "next.done"}
IMAGE = {"observation.images.top": "observation.images.top"}
# Fixture -> size of its images, and array -> the name of the formula that made it.
ARRAYS = {
    "lerobot_v3_png": (16, {**VECTORS, **MORE, **IMAGE}),
    "lerobot_v3_mp4": (64, {**VECTORS, **IMAGE}),
    "lerobot_v21_mp4": (64, {**VECTORS, **IMAGE}),
    "robomimic.hdf5": (
        16,
        {
            "actions": "action",
            "states": "observation.state",
            "obs/eef_pos": "observation.state",
            "obs/agentview_image": "observation.images.top",
            "rewards": "next.reward",
            "dones": "next.done",
        },
    ),
    "minari": (
        16,
        {
            "actions": "action",
            "observations/state": "observation.state",
            "observations/top": "observation.images.top",
            "rewards": "next.reward",
            "terminations": "next.done",
        },
    ),
}
FORMATS = {name: name.split("_")[0].removesuffix(".hdf5") for name in ARRAYS}


def opened(name: str) -> Recording:
    return open_recording(str(FIXTURES / name), FORMATS[name])


@pytest.mark.parametrize("name", ARRAYS)
def test_every_number_is_the_one_that_was_recorded(name: str):
    source = opened(name)
    size, arrays = ARRAYS[name]
    assert source.episode_ends.tolist() == np.cumsum(LENGTHS).tolist()
    for key, formula in arrays.items():
        expected = np.concatenate([episode(index, size)[formula] for index in range(len(LENGTHS))])
        found = source[key]
        loss = LOSS if name.endswith("mp4") and "images" in formula else 0
        difference = np.abs(found.astype(float) - expected.reshape(found.shape).astype(float))
        assert difference.max() <= loss, key
        assert difference.mean() <= loss / 10, key  # a frame that is one step off differs by 3 on average
        some = np.array([1, 4, 6])
        np.testing.assert_array_equal(source.take(key, some), found[some])
    source.close()


def test_a_shift_by_one_frame_would_be_noticed():
    images = np.concatenate([episode(index, 64)["observation.images.top"] for index in range(2)]).astype(float)
    assert np.abs(np.roll(images, 1, axis=0) - images).mean() > LOSS / 10


@pytest.mark.parametrize("name", ARRAYS)
def test_auto_recognises_the_format(name: str):
    assert recognise(FIXTURES / name) == FORMATS[name]


def test_tasks_rate_names_and_statistics_are_kept():
    for name in ("lerobot_v3_png", "lerobot_v3_mp4", "lerobot_v21_mp4"):
        source = opened(name)
        state = np.concatenate([episode(index)["observation.state"] for index in range(2)]).astype(np.float64)
        assert source.about["fps"] == FPS
        assert source.about["tasks"] == TASKS
        assert source.about["robot_type"] == "arm"
        assert source.about["features"]["observation.state"]["names"] == ["x", "y", "angle"]
        assert [each["tasks"] for each in source.episode_attributes] == [[task] for task in TASKS]
        assert source["task_index"][:, 0].tolist() == [0] * 5 + [1] * 3
        found = source.about["statistics"]["observation.state"]
        np.testing.assert_allclose(found["mean"], state.mean(0), rtol=1e-6)  # LeRobot sums in float32
        np.testing.assert_allclose(found["std"], state.std(0), rtol=1e-6)
        np.testing.assert_allclose(found["max"], state.max(0), rtol=1e-6)
    robomimic = opened("robomimic.hdf5")
    assert robomimic.about["env_args"]["env_name"] == "Lift"
    assert robomimic.about["fps"] == FPS
    assert [each["masks"] for each in robomimic.episode_attributes] == [["train"], ["valid"]]
    assert opened("minari").about["algorithm_name"] == "formula"
    assert [each["seed"] for each in opened("minari").episode_attributes] == [0, 1]


@pytest.mark.parametrize("name", ARRAYS)
def test_a_conversion_to_zarr_holds_the_same(name: str, tmp_path: Path):
    source = opened(name)
    convert(source, tmp_path / "made.zarr", "zarr")
    buffer = ReplayBuffer.open(tmp_path / "made.zarr", "a")
    assert buffer.episode_ends.tolist() == source.episode_ends.tolist()
    assert dict(buffer.specs) == source.specs
    for key in source.keys:
        np.testing.assert_array_equal(buffer[key], source[key])
    first, *others = buffer.episode_attributes
    assert first.pop("source") == source.about
    assert [first, *others] == source.episode_attributes
    buffer.append_episode(buffer.episode(0))  # it is a data set of ours like any other
    assert [each.name for each in tmp_path.iterdir()] == ["made.zarr"]


def test_two_processes_write_the_same_bytes_as_one(tmp_path: Path):
    for workers in (1, 2):
        convert(opened("lerobot_v3_mp4"), tmp_path / f"{workers}.zarr", "zarr", WriteSettings(workers=workers))
    one, two = (
        {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root in (tmp_path / "1.zarr", tmp_path / "2.zarr")
    )
    assert one == two


def test_demonstrations_are_loaded_from_a_lerobot_folder_without_converting_it():
    for name in ("lerobot_v3_png", "lerobot_v3_mp4"):
        folder = str(FIXTURES / name)
        asked = {"state": ["observation.state", "action[:1]"], "top": ["observation.images.top"]}
        images = {"top": PixelFormat()}
        found = load_demonstrations(folder, asked, "action", ["top"], TRAINING["lerobot"], images=images)
        size, _ = ARRAYS[name]
        assert found.actions.shape == (8, 2)
        assert found.observations["state"].shape == (8, 4)
        assert found.observations["top"].shape == (8, size, size, 3)
        source = opened(name)
        rows = np.array([[0, 0], [6, 7], [3, 4]])
        streamed = found.observations["top"][torch.from_numpy(rows)]
        np.testing.assert_array_equal(streamed.numpy(), source["observation.images.top"][rows])
