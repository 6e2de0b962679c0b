"""Arrays that a task does not name do not matter, whatever they hold; those that it names may be in groups."""

import json
from pathlib import Path

import numpy as np
import pytest
import zarr
from one_case import over

from diffpolicy.data.demonstrations import load_demonstrations
from diffpolicy.data.replay_buffer import ReplayBuffer

N = 6
OTHERS = {
    "text": np.array(["a"] * N),
    "bytes": np.array([b"a"] * N),
    "time": np.zeros(N, "M8[ns]"),
    "number": np.array(3.0),
    "per_episode": np.array([1.0, 2.0]),
    "longer": np.zeros((N + 2, 1)),
    "empty": np.zeros((0, 3)),
    "complex": np.zeros(N, "c8"),
}
REASONS = {
    "text": "data/text: dtype is <U1",
    "bytes": r"data/bytes: dtype is \|S1",
    "time": r"data/time: dtype is datetime64\[ns\]",
    "number": "data/number: is a single number",
    "per_episode": "array 'per_episode' has 2 rows, expected 6",
    "longer": r"arrays have different lengths .*'longer': 8",
    "empty": "array 'empty' has 0 rows",
    "complex": "data/complex: dtype is complex64",
    "camera": r"data/camera: cannot be decoded \(UnknownCodecError: .*install the package that has its codec",
    "broken": "data/broken: truncated or corrupt",
    "robot": "no array data/robot",
}


@pytest.fixture(scope="module", params=[2, 3])
def theirs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set by others, of zarr format 2 or 3, with arrays that cannot be read."""
    path = tmp_path_factory.mktemp("theirs") / "theirs.zarr"
    root = zarr.open_group(path, mode="w", zarr_format=request.param)
    root.create_array("data/action", data=np.arange(2.0 * N).reshape(N, 2))
    root.create_array("data/robot/arm/pose", data=np.arange(3.0 * N).reshape(N, 3))
    for key, values in OTHERS.items():
        root.create_array(f"data/{key}", data=values)
    for key in ("camera", "broken"):
        root.create_array(f"data/{key}", data=np.zeros((N, 2), "u1"))
    camera = path / "data" / "camera" / {2: ".zarray", 3: "zarr.json"}[request.param]
    metadata = json.loads(camera.read_text())
    if request.param == 2:
        metadata["compressor"] = {"id": "not_installed"}
    else:
        metadata["codecs"][-1] = {"name": "not_installed", "configuration": {}}
    camera.write_text(json.dumps(metadata))
    (path / "data" / "broken" / camera.name).write_text("{")
    root.create_array("meta/episode_ends", data=np.array([4, N]))
    return path


def test_only_what_a_task_names_is_looked_at(theirs: Path) -> None:
    found = load_demonstrations(theirs, {"pose": ["robot/arm/pose[1:]"]})
    np.testing.assert_array_equal(found.actions, np.arange(2.0 * N).reshape(N, 2))
    np.testing.assert_array_equal(found.observations["pose"], np.arange(3.0 * N).reshape(N, 3)[:, 1:])
    assert found.episode_ends.tolist() == [4, N]


@over("key, reason", [*REASONS.items()])
def test_what_it_names_and_cannot_be_read_is_named_with_its_file(theirs: Path, key: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        load_demonstrations(theirs, {"all": [key]})
    assert str(theirs) in str(caught.value)


def test_keys_are_the_arrays_that_can_be_read(theirs: Path) -> None:
    buffer = ReplayBuffer.open(theirs)
    assert buffer["action"].shape == (N, 2)
    assert buffer.keys == ["action", "robot/arm/pose"]
    assert sorted(buffer.episode(1)) == ["action", "robot/arm/pose"]
    with pytest.raises(KeyError, match=r"no array 'nothing'; it has .*'camera'.*'robot/arm/pose'"):
        _ = buffer["nothing"]
    with pytest.raises(ValueError, match="no array 'nothing'"):
        load_demonstrations(theirs, {"all": ["nothing"]})


def test_a_copy_names_what_it_leaves_out_and_keeps_the_groups(theirs: Path, tmp_path: Path) -> None:
    buffer = ReplayBuffer.open(theirs)
    _ = buffer["action"]
    with pytest.warns(UserWarning, match=r"the copy leaves out broken, bytes, camera.*dtype is"):
        buffer.copy(tmp_path / "mine.zarr")
    mine = ReplayBuffer.open(tmp_path / "mine.zarr", mode="a")
    mine.append_episode({"action": np.zeros((2, 2)), "robot/arm/pose": np.ones((2, 3))})
    mine.drop_episodes([0])
    mine.pack(tmp_path / "mine.zarr.zip")
    packed = ReplayBuffer.open(tmp_path / "mine.zarr.zip")
    np.testing.assert_array_equal(packed["robot/arm/pose"][-2:], np.ones((2, 3)))
    assert packed.episode_ends.tolist() == [2, 4]


def test_a_recording_may_have_groups(tmp_path: Path) -> None:
    buffer = ReplayBuffer.create(tmp_path / "new.zarr", {"action": ((1,), "f4"), "obs/eef": ((2,), "f4")})
    buffer.append_episode({"action": np.zeros((3, 1)), "obs/eef": np.ones((3, 2))})
    assert load_demonstrations(tmp_path / "new.zarr", {"eef": ["obs/eef"]}).observations["eef"].sum() == 6.0
