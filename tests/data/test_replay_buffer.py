"""What is appended is read back, whatever is appended, dropped, copied and packed in between."""

import zipfile
from uuid import uuid4

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from one_case import over

from diffpolicy.data.replay_buffer import ReplayBuffer

SPEC = {"value": ((2,), "float32")}


def test_reads_back_what_was_appended(recorded, make_episode):
    buffer = ReplayBuffer.open(recorded)
    assert (buffer.n_episodes, buffer.n_steps, buffer.keys) == (3, 11, ["action", "state", "count"])
    assert buffer.episode_ends.dtype == np.int64
    assert buffer.episode_ends.tolist() == [4, 5, 11]
    assert buffer.episode_attributes == [{"seed": 0}, {"seed": 1}, {"seed": 2}]
    for tag, length in enumerate([4, 1, 6]):
        for key, expected in make_episode(length, tag).items():
            found = buffer.episode(tag)[key]
            assert found.dtype == buffer.specs[key][1]
            np.testing.assert_array_equal(found, expected)
    assert buffer["action"].shape == (11, 2)


def test_writes_zarr_format_3_in_the_layout_of_the_field(recorded):
    root = zarr.open_group(recorded, mode="r")
    assert root.metadata.zarr_format == 3
    assert root["data/state"].shape == (11, 3)
    assert root["meta/episode_ends"][:].tolist() == [4, 5, 11]


def test_create_refuses_an_existing_path_and_leaves_it_untouched(recorded):
    with pytest.raises(FileExistsError, match="exists already"):
        ReplayBuffer.create(recorded, SPEC)
    assert ReplayBuffer.open(recorded).n_episodes == 3


@over(
    "specs, message",
    [
        ({}, "no arrays given"),
        ({"a/.b": ((2,), "float32")}, "plain name"),
        ({"/b": ((2,), "float32")}, "plain name"),
        ({"a": ((2,), object)}, "dtype is object"),
        ({"a": ((2,), "U5")}, "dtype is <U5"),
        ({"a": ((0,), "float32")}, "positive integers"),
        ({"a": "float32"}, "expected .shape of one row, dtype."),
    ],
)
def test_create_refuses_bad_specs_and_makes_nothing(tmp_path, specs, message):
    with pytest.raises(ValueError, match=message):
        ReplayBuffer.create(tmp_path / "new.zarr", specs)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"state": None}, "has arrays .*expected .*state"),
        ({"extra": np.zeros(4)}, "has arrays .*extra"),
        ({"state": np.zeros((4, 2))}, r"'state' has shape \(4, 2\)"),
        ({"state": np.zeros((5, 3))}, "lengths .*'action': 4, 'state': 5"),
        ({"count": np.zeros(4)}, "'count' is float64, expected int64"),
        ({"count": np.array(["a"] * 4)}, "'count' is <U1"),
        ({"state": np.full((4, 3), None)}, "'state' is object"),
        ({"state": np.array([[0, 0, 0], [0, np.nan, 0], [0, 0, 0], [0, 0, 0]])}, "'state' holds NaN or inf at step 1"),
        ({"action": np.full((4, 2), 1e300)}, "'action' holds NaN or inf at step 0"),
    ],
)
def test_append_refuses_what_does_not_fit_and_writes_nothing(recorded, make_episode, change, message):
    arrays = {key: value for key, value in {**make_episode(4, 9), **change}.items() if value is not None}
    buffer = ReplayBuffer.open(recorded, mode="a")
    with pytest.raises(ValueError, match=message):
        buffer.append_episode(arrays)
    assert buffer.n_episodes == 3
    assert zarr.open_group(recorded, mode="r")["data/action"].shape[0] == 11


def test_an_empty_episode_is_refused(recorded, make_episode):
    with pytest.raises(ValueError, match="at least 1"):
        ReplayBuffer.open(recorded, mode="a").append_episode(make_episode(0, 9))


def test_attributes_that_json_cannot_hold_leave_the_buffer_as_it_was(recorded, make_episode):
    with pytest.raises(ValueError, match="attributes"):
        ReplayBuffer.open(recorded, mode="a").append_episode(make_episode(2, 9), {"seed": object()})
    assert ReplayBuffer.open(recorded).n_episodes == 3


def test_a_buffer_open_for_reading_refuses_changes(recorded, make_episode):
    buffer = ReplayBuffer.open(recorded)
    with pytest.raises(ValueError, match='mode="a"'):
        buffer.append_episode(make_episode(2, 9))
    with pytest.raises(ValueError, match='mode="a"'):
        buffer.drop_episodes([0])


def test_drop_removes_just_these_episodes_and_their_attributes(recorded, make_episode):
    buffer = ReplayBuffer.open(recorded, mode="a")
    buffer.drop_episodes([1, 0])
    for each in (buffer, ReplayBuffer.open(recorded)):
        assert each.episode_attributes == [{"seed": 2}]
        np.testing.assert_array_equal(each["state"], make_episode(6, 2)["state"])
    buffer.append_episode(make_episode(3, 7))
    assert buffer.episode_attributes == [{"seed": 2}, {}]
    assert [path.name for path in recorded.parent.iterdir()] == [recorded.name]


def test_drop_of_an_unknown_episode_names_the_range(recorded):
    with pytest.raises(IndexError, match=r"episodes \[-1, 3\], expected 0 to 2"):
        ReplayBuffer.open(recorded, mode="a").drop_episodes([0, 3, -1])


def test_copy_takes_the_wanted_keys_and_episodes(recorded, tmp_path, make_episode):
    ReplayBuffer.open(recorded).copy(tmp_path / "part.zarr", keys=["state"], episodes=[2, 0])
    part = ReplayBuffer.open(tmp_path / "part.zarr", mode="a")
    assert part.keys == ["state"]
    np.testing.assert_array_equal(part.episode(0)["state"], make_episode(4, 0)["state"])
    np.testing.assert_array_equal(part.episode(1)["state"], make_episode(6, 2)["state"])
    assert part.episode_attributes == [{"seed": 0}, {"seed": 2}]


@over(
    "arguments, error, message",
    [
        ({"keys": ["stat"]}, KeyError, "no array 'stat'"),
        ({"episodes": [-1]}, IndexError, r"episodes \[-1\], expected 0 to 2"),
    ],
)
def test_copy_refuses_what_is_not_there_and_makes_nothing(recorded, tmp_path, arguments, error, message):
    with pytest.raises(error, match=message):
        ReplayBuffer.open(recorded).copy(tmp_path / "part.zarr", **arguments)
    assert not (tmp_path / "part.zarr").exists()


def test_an_episode_that_holds_nan_can_be_dropped(recorded, make_episode):
    zarr.open_group(recorded, mode="r+")["data/state"][4] = np.nan
    buffer = ReplayBuffer.open(recorded, mode="a")
    with pytest.raises(ValueError, match="in episode 1 at step 0"):
        buffer["state"]
    buffer.drop_episodes([1])
    np.testing.assert_array_equal(buffer["state"][4:], make_episode(6, 2)["state"])


def test_pack_replaces_an_old_zip_and_equal_data_make_equal_bytes(recorded, tmp_path):
    one, two = tmp_path / "one.zarr.zip", tmp_path / "two.zarr.zip"
    one.write_text("an older file")
    buffer = ReplayBuffer.open(recorded)
    buffer.pack(one)
    buffer.pack(two)
    assert one.read_bytes() == two.read_bytes()
    packed = ReplayBuffer.open(one)
    for key in buffer.keys:
        np.testing.assert_array_equal(packed[key], buffer[key])
    assert packed.episode_attributes == buffer.episode_attributes
    assert len(set(zipfile.ZipFile(one).namelist())) == len(zipfile.ZipFile(one).namelist())
    assert {path.name for path in tmp_path.iterdir()} == {recorded.name, one.name, two.name}


def test_unknown_array_and_episode_name_what_there_is(recorded):
    buffer = ReplayBuffer.open(recorded)
    with pytest.raises(KeyError, match=r"it has .*action"):
        buffer["actoin"]
    with pytest.raises(IndexError, match="episode 3, expected 0 to 2"):
        buffer.episode(3)


OPERATION = st.one_of(
    st.tuples(st.just("append"), st.integers(1, 30), st.booleans()),
    st.tuples(st.just("drop"), st.sets(st.integers(0, 5), max_size=3), st.booleans()),
)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(operations=st.lists(OPERATION, max_size=8))
def test_any_sequence_of_changes_equals_a_plain_list(tmp_path_factory, monkeypatch, operations):
    """Against a Python list as the model; tiny chunks, so that episodes cross their borders."""
    monkeypatch.setattr("diffpolicy.data.store.CHUNK_ROWS", 7)
    path = tmp_path_factory.mktemp("model") / "a.zarr"
    buffer, model = ReplayBuffer.create(path, SPEC), []
    for number, (name, what, reopen) in enumerate(operations):
        if name == "append":
            model.append((np.full((what, 2), number, np.float32), {"number": number} if reopen else {}))
            buffer.append_episode({"value": model[-1][0]}, model[-1][1])
        else:
            dropped = {i for i in what if i < len(model)}
            model = [each for i, each in enumerate(model) if i not in dropped]
            buffer.drop_episodes(dropped)
        buffer = ReplayBuffer.open(path, mode="a") if reopen else buffer
    assert buffer.n_episodes == len(model)
    assert buffer.episode_attributes == [attributes for _, attributes in model]
    for i, (values, _) in enumerate(model):
        np.testing.assert_array_equal(buffer.episode(i)["value"], values)


@over(
    "dtype, values, message",
    [
        ("int16", [1, 40000], "'x' holds 40000, expected -32768 to 32767, which int16 can hold exactly"),
        ("int16", [1, -40000], "'x' holds -40000"),
        ("uint8", np.array([1, 256], "u8"), "'x' holds 256, expected 0 to 255"),
        ("int64", np.array([1, 2**63], "u8"), f"'x' holds {2**63}"),
        ("float32", [0, 2**24 + 1], f"'x' holds {2**24 + 1}, expected -{2**24} to {2**24}"),
        ("float16", [0, 4096], "'x' holds 4096, expected -2048 to 2048"),
        ("float64", [0, -(2**53) - 1], f"'x' holds -{2**53 + 1}"),
        ("float16", [0.0, 7e4], "'x' holds NaN or inf at step 1"),
        ("int16", [1.0, 2.5], "'x' is float64, expected int16"),
        ("int16", [1.0, np.nan], "'x' is float64, expected int16"),
        ("uint8", [1, 2], "'x' is int64, expected uint8"),
        ("bool", [0, 1], "'x' is int64, expected bool"),
    ],
)
def test_a_number_that_its_dtype_cannot_hold_is_refused(tmp_path, dtype, values, message):
    location = tmp_path / f"{uuid4().hex}.zarr"
    buffer = ReplayBuffer.create(location, {"x": ((), dtype)})
    with pytest.raises(ValueError, match=message):
        buffer.append_episode({"x": np.asarray(values)})
    assert ReplayBuffer.open(location).n_episodes == 0


@over(
    "dtype, values",
    [
        ("int16", [-32768, 32767]),
        ("uint8", np.array([0, 255], "u2")),
        ("float32", [-(2**24), 2**24]),
        ("float32", [0.1, 3e38]),
    ],
)
def test_a_number_that_its_dtype_can_hold_is_recorded(tmp_path, dtype, values):
    buffer = ReplayBuffer.create(tmp_path / f"{uuid4().hex}.zarr", {"x": ((), dtype)})
    buffer.append_episode({"x": np.asarray(values)})
    np.testing.assert_array_equal(buffer["x"], np.asarray(values).astype(dtype))
