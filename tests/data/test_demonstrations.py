"""The training view joins just the columns that a task names, and refuses what it cannot mean."""

import numpy as np
import pytest
import torch
from one_case import over

from diffpolicy.data.demonstrations import MAX_COLUMNS, load_demonstrations
from diffpolicy.data.replay_buffer import ReplayBuffer

N = 6
ARRAYS = {
    "action": np.arange(2 * N, dtype=np.float64).reshape(N, 2),
    "keypoint": np.arange(18 * N, dtype=np.float32).reshape(N, 9, 2) + 1000,
    "state": np.arange(5 * N, dtype=np.float32).reshape(N, 5) + 2000,
    "contacts": np.arange(N, dtype=np.int64),
    "img": np.zeros((N, 24, 24, 3), np.uint8),
}


@pytest.fixture
def data_set(tmp_path):
    path = tmp_path / "data.zarr"
    buffer = ReplayBuffer.create(path, {key: (array.shape[1:], array.dtype) for key, array in ARRAYS.items()})
    buffer.append_episode({key: array[:4] for key, array in ARRAYS.items()})
    buffer.append_episode({key: array[4:] for key, array in ARRAYS.items()})
    return path


FLAT = {key: array.reshape(N, -1) for key, array in ARRAYS.items()}


@over(
    "parts, expected",
    [
        (["state"], FLAT["state"]),
        (["keypoint", "state[:2]"], np.hstack([FLAT["keypoint"], FLAT["state"][:, :2]])),
        (["state[:2]", "keypoint"], np.hstack([FLAT["state"][:, :2], FLAT["keypoint"]])),
        (["state[2:]"], FLAT["state"][:, 2:]),
        (["state[:]"], FLAT["state"]),
        ([" state[1:3] "], FLAT["state"][:, 1:3]),
        (["contacts"], FLAT["contacts"]),
        (["keypoint[17:18]", "contacts"], np.hstack([FLAT["keypoint"][:, 17:], FLAT["contacts"]])),
    ],
)
def test_parts_are_flattened_sliced_and_joined_in_order(data_set, parts, expected):
    found = load_demonstrations(data_set, {"obs": parts})
    assert found.observations["obs"].dtype == found.actions.dtype == torch.float32
    np.testing.assert_array_equal(found.observations["obs"].numpy(), expected)
    np.testing.assert_array_equal(found.actions.numpy(), ARRAYS["action"])
    assert found.episode_ends.tolist() == [4, 6]
    assert (found.n_episodes, found.n_steps) == (2, 6)


def test_several_observations_and_another_action(data_set):
    found = load_demonstrations(data_set, {"a": ["state[:1]"], "b": ["contacts"]}, action="keypoint[:3]")
    assert {name: tuple(value.shape) for name, value in found.observations.items()} == {"a": (6, 1), "b": (6, 1)}
    assert found.actions.shape == (6, 3)


@over(
    "observations, action, message",
    [
        ({"obs": ["stat"]}, "action", r"'obs': 'stat': no array 'stat'; the data set has \['action', 'keypoint'"),
        ({"obs": ["state"]}, "actions", r"'action': 'actions': no array 'actions'; the data set has"),
        ({"obs": ["state[:6]"]}, "action", r"columns 0:6 of array 'state', expected a range within 0:5"),
        ({"obs": ["state[3:3]"]}, "action", r"columns 3:3"),
        ({"obs": ["state[4:2]"]}, "action", r"columns 4:2"),
        ({"obs": ["state[:-1]"]}, "action", r"not an array name with an optional column range"),
        ({"obs": ["state[2]"]}, "action", r"not an array name with an optional column range"),
        ({"obs": ["state[0:4:2]"]}, "action", r"not an array name with an optional column range"),
        ({"obs": ["state[:2"]}, "action", r"not an array name with an optional column range"),
        ({"obs": [""]}, "action", r"not an array name with an optional column range"),
        (
            {"obs": ["img"]},
            "action",
            rf"'img' has 1728 columns .*at most {MAX_COLUMNS} numbers; if it holds images: 'data.images=",
        ),
        ({"obs": ["img[:3]"]}, "action", r"images"),
        ({"obs": "state"}, "action", r"observation 'obs': is 'state', expected a list"),
        ({"obs": []}, "action", r"observation 'obs': is \[\], expected a list"),
        ({}, "action", r"no observations named"),
    ],
)
def test_what_a_task_cannot_mean_is_named(data_set, observations, action, message):
    with pytest.raises(ValueError, match=message):
        load_demonstrations(data_set, observations, action)


def test_no_episodes_is_an_error(tmp_path):
    ReplayBuffer.create(tmp_path / "empty.zarr", {"action": ((2,), "float32")})
    with pytest.raises(ValueError, match="holds no episodes"):
        load_demonstrations(tmp_path / "empty.zarr", {"obs": ["action"]})


def test_numbers_that_float32_cannot_hold_are_refused(tmp_path):
    buffer = ReplayBuffer.create(tmp_path / "big.zarr", {"action": ((1,), "float64")})
    buffer.append_episode({"action": [[1.0], [1e39]]})
    with pytest.raises(ValueError, match="beyond float32"):
        load_demonstrations(tmp_path / "big.zarr", {"obs": ["action"]})


def test_an_unreadable_image_does_not_matter_to_low_dimensional_training(data_set):
    for chunk in (data_set / "data" / "img" / "c").rglob("*"):
        if chunk.is_file():
            chunk.write_bytes(b"")
    assert load_demonstrations(data_set, {"obs": ["state"]}).n_steps == 6
