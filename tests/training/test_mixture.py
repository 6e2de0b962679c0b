"""Several data sets in one training, each drawn from as often as its weight says."""

from pathlib import Path

import numpy as np
import pytest
import torch
from one_case import over
from walk import record, settings

from diffpolicy.data.replay_buffer import ReplayBuffer
from diffpolicy.policy.settings import WindowConfig
from diffpolicy.training.batches import WindowBatches
from diffpolicy.training.data_formats import load_data
from diffpolicy.training.settings import DataConfig
from diffpolicy.training.trainer import Trainer


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two data sets, of two long episodes and of one short one, whose rows tell which they are from."""
    folder = tmp_path_factory.mktemp("data")
    for number, lengths in enumerate([[40, 50], [20]]):
        buffer = ReplayBuffer.create(folder / f"{number}.zarr", dict.fromkeys(("action", "state"), ((1,), "float32")))
        for length in lengths:
            rows = np.linspace(number, number + 0.5, length, dtype="float32")[:, None]
            buffer.append_episode({"action": rows, "state": rows})
    return [str(folder / f"{number}.zarr") for number in (0, 1)]


def data_config(paths: list[str], **changes) -> DataConfig:
    return DataConfig(paths, observations={"state": ["state"]}, **changes)


def batches(paths: list[str], weights: list[float] | None, stream: list[str]) -> WindowBatches:
    data = load_data(data_config(paths, stream=stream))
    window, device = WindowConfig(horizon=4, n_obs_steps=1, n_action_steps=2), torch.device("cpu")
    return WindowBatches(data, np.arange(3), window, 8, 0, device, weights=weights)


@pytest.mark.parametrize("stream", [[], ["state"]], ids=["memory", "disk"])
@pytest.mark.parametrize(("weights", "share"), [(None, 18 / 104), ([1.0, 1.0], 0.5), ([1.0, 3.0], 0.75)])
def test_windows_are_drawn_in_proportion_to_the_weights(
    paths: list[str], weights: list[float] | None, share: float, stream: list[str]
) -> None:
    found = batches(paths, weights, stream)
    epoch = [found.batch(step) for step in range(found.steps_per_epoch)]
    for batch in epoch:
        torch.testing.assert_close(batch.observations["state"], batch.actions[:, :1], rtol=0, atol=0)
        assert (batch.actions.floor() == batch.actions[:, :1].floor()).all(), "no window spans two data sets"
    second = torch.cat([batch.actions[:, 0, 0] >= 1 for batch in epoch]).double().mean()
    torch.testing.assert_close(float(second), share, rtol=0, atol=0.05)  # an epoch leaves out less than one batch
    again = batches(paths, weights, stream).batch(found.steps_per_epoch + 2)
    assert torch.equal(again.actions, found.batch(found.steps_per_epoch + 2).actions)


def test_two_data_sets_train_as_one(paths: list[str], tmp_path: Path) -> None:
    Trainer(settings(tmp_path, data=data_config(paths, weights=[2.0, 1.0]), trainer={"steps": 2}), tmp_path).run()
    assert (tmp_path / "checkpoints" / "step_2").is_dir()


@over(
    "changes, message",
    [
        ({"weights": [1.0]}, r"weights \[1.0\], expected one number above 0 for each of 2 data sets"),
        ({"weights": [1.0, float("nan")]}, "expected one number above 0"),
        ({"weights": [1.0, 0.0]}, "expected one number above 0"),
        ({"path": []}, r"path is \[\], expected a path or a list of paths"),
        ({"path": [3]}, r"path is \[3\], expected"),
    ],
)
def test_weights_and_paths_that_make_no_sense_are_refused(paths: list[str], changes: dict, message: str) -> None:
    config = data_config(**{"paths": changes.pop("path", paths), **changes})
    with pytest.raises(ValueError, match=message):
        load_data(config)


def test_data_sets_of_other_shapes_are_refused_by_name(paths: list[str], tmp_path: Path) -> None:
    other = record(tmp_path / "walk.zarr")
    with pytest.raises(ValueError, match=rf"data: {other} has rows .*'state': \(2,\).*, expected those of {paths[0]}"):
        load_data(data_config([paths[0], str(other)]))
