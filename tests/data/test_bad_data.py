"""Damaged or wrong data: each case is an error that names the thing at fault, and no row of it gets out."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr
from numcodecs import Pickle
from one_case import over

from diffpolicy.data.replay_buffer import ReplayBuffer


def read_everything(location) -> None:
    buffer = ReplayBuffer.open(location)
    for key in buffer.keys:
        _ = buffer[key]


def first_chunk(path: Path, array: str) -> Path:
    return next(each for each in sorted((path / array / "c").rglob("*")) if each.is_file())


def write_ends(ends) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        root = zarr.open_group(path, mode="r+")
        del root["meta/episode_ends"]
        root.create_array("meta/episode_ends", data=np.asarray(ends))

    return damage


def set_value(array: str, where, value) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        zarr.open_group(path, mode="r+")[array][where] = value

    return damage


def resize(array: str, shape) -> Callable[[Path], None]:
    return lambda path: zarr.open_group(path, mode="r+")[array].resize(shape)


def remove(name: str) -> Callable[[Path], None]:
    return lambda path: shutil.rmtree(path / name)


def flip_bit(array: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        chunk = first_chunk(path, array)
        content = bytearray(chunk.read_bytes())
        content[len(content) // 2] ^= 1
        chunk.write_bytes(content)

    return damage


def truncate(array: str) -> Callable[[Path], None]:
    return lambda path: first_chunk(path, array).write_bytes(first_chunk(path, array).read_bytes()[:-9])


def empty_metadata(path: Path) -> None:
    (path / "data" / "action" / "zarr.json").write_text("{")


DAMAGE = {
    "NaN": (set_value("data/state", (7, 1), np.nan), r"'state' holds NaN or inf in episode 2 at step 2"),
    "inf at the first row": (set_value("data/action", 0, np.inf), r"'action' holds NaN or inf in episode 0 at step 0"),
    "inf at an episode's last row": (set_value("data/action", 3, -np.inf), r"in episode 0 at step 3"),
    "flipped bit": (flip_bit("data/state"), r"array 'state': truncated or corrupt"),
    "truncated chunk": (truncate("data/action"), r"array 'action': truncated or corrupt"),
    "flipped bit in the ends": (flip_bit("meta/episode_ends"), r"meta/episode_ends: truncated or corrupt"),
    "missing chunk": (remove("data/state/c"), r"array 'data/state' is missing 1 of 1 chunks"),
    "missing chunk of the ends": (remove("meta/episode_ends/c"), r"chunk meta/episode_ends/c/0 is missing"),
    "missing array": (remove("data/count"), r"no array data/count"),
    "missing ends": (remove("meta/episode_ends"), r"no array meta/episode_ends"),
    "missing data": (remove("data"), r"no group 'data'"),
    "broken metadata": (empty_metadata, r"data/action: truncated or corrupt"),
    "short array": (resize("data/count", (9,)), r"'count' has 9 rows, expected 11"),
    "ends repeat": (write_ends([4, 4, 11]), r"not strictly increasing, episode 0 ends at 4 and episode 1 at 4"),
    "ends fall": (write_ends([5, 4, 11]), r"not strictly increasing, episode 0 ends at 5 and episode 1 at 4"),
    "ends begin at 0": (write_ends([0, 5, 11]), r"first end is 0, expected at least 1"),
    "ends are negative": (write_ends([-3, 5, 11]), r"first end is -3"),
    "ends are not integers": (write_ends([4.0, 5.0, 11.0]), r"float64 of shape \(3,\), expected integers"),
    "ends are a table": (write_ends([[4, 5, 11]]), r"shape \(1, 3\), expected integers"),
    "end beyond the data": (write_ends([4, 5, 12]), r"'action' has 11 rows, expected 12"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named(recorded, name):
    damage, message = DAMAGE[name]
    damage(recorded)
    with pytest.raises(ValueError, match=message) as caught:
        read_everything(recorded)
    assert str(recorded) in str(caught.value)


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_a_truncated_zip_is_refused_on_open(recorded, tmp_path, keep):
    target = tmp_path / "packed.zip"
    ReplayBuffer.open(recorded).pack(target)
    content = target.read_bytes()
    target.write_bytes(content[: int(keep if keep > 1 else keep * len(content))])
    with pytest.raises(ValueError, match=r"packed.zip: not a readable zip, truncated or corrupt"):
        ReplayBuffer.open(target)


def test_a_flipped_byte_anywhere_in_a_zip_never_gives_other_numbers(recorded, tmp_path):
    target = tmp_path / "packed.zip"
    buffer = ReplayBuffer.open(recorded)
    buffer.pack(target)
    content = target.read_bytes()
    for position in range(0, len(content), 97):
        target.write_bytes(content[:position] + bytes([content[position] ^ 4]) + content[position + 1 :])
        try:
            found = ReplayBuffer.open(target)
            arrays = {key: found[key] for key in buffer.keys}
        except ValueError:
            continue
        for key, values in arrays.items():
            np.testing.assert_array_equal(values, buffer[key])


def foreign(path: Path, arrays: dict[str, np.ndarray], ends: list[int]) -> Path:
    root = zarr.open_group(path, mode="w", zarr_format=2)
    for key, values in arrays.items():
        root.create_array(f"data/{key}", data=values)
    root.create_array("meta/episode_ends", data=np.array(ends))
    return path


def test_arrays_of_different_length_are_refused_in_files_of_others(tmp_path):
    path = foreign(tmp_path / "a.zarr", {"action": np.zeros((5, 2)), "state": np.zeros((6, 2))}, [5])
    buffer = ReplayBuffer.open(path)
    assert buffer["action"].shape == (5, 2), "alone it fits the ends"
    with pytest.raises(ValueError, match=r"different lengths .*'action': 5, 'state': 6.*expected 5 rows in each"):
        _ = buffer["state"]


def test_equal_extra_rows_in_files_of_others_are_left_out_with_a_notice(tmp_path):
    path = foreign(tmp_path / "a.zarr", {"action": np.zeros((8, 2)), "state": np.zeros((8, 2))}, [2, 5])
    with pytest.warns(UserWarning, match="ignoring 3 rows"):
        assert ReplayBuffer.open(path)["action"].shape == (5, 2)


def test_a_single_number_in_place_of_an_array_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"data/action: is a single number"):
        _ = ReplayBuffer.open(foreign(tmp_path / "a.zarr", {"action": np.array(3.0)}, [1]))["action"]


def test_text_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"data/label: dtype is .*expected a boolean, integer or floating"):
        _ = ReplayBuffer.open(foreign(tmp_path / "a.zarr", {"label": np.array(["a", "b"])}, [2]))["label"]


def test_a_pickle_codec_is_refused_before_anything_is_read(tmp_path):
    path = foreign(tmp_path / "a.zarr", {"action": np.zeros((5, 2))}, [5])
    metadata = path / "data" / "action" / ".zarray"
    metadata.write_text(json.dumps({**json.loads(metadata.read_text()), "filters": [Pickle().get_config()]}))
    with pytest.raises(ValueError, match="pickle"):
        _ = ReplayBuffer.open(path)["action"]


@over(
    "location, error, message",
    [
        ("missing.zarr", FileNotFoundError, "no data set here; give the path"),
        ("memory://missing", FileNotFoundError, "no zarr group at this URL"),
        ("nonsense://a/b", (ImportError, ValueError), "nonsense://a/b: "),
        ("https://127.0.0.1:9/a.zarr.zip", ValueError, "download it"),
        ("folder", ValueError, "not a zarr group, found neither"),
        ("text.zip", ValueError, "not a readable zip"),
        ("demo.hdf5", ValueError, "is an HDF5 file, expected a .zarr directory or a .zarr.zip; record its episodes"),
        ("table.parquet", ValueError, "is a Parquet file"),
        ("text.zarr", ValueError, "is neither a zip nor a directory"),
    ],
)
def test_what_is_not_a_data_set_is_named(tmp_path, location, error, message):
    (tmp_path / "folder").mkdir(exist_ok=True)
    (tmp_path / "text.zip").write_text("hello")
    (tmp_path / "text.zarr").write_text("hello")
    (tmp_path / "demo.hdf5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    (tmp_path / "table.parquet").write_bytes(b"PAR1" + bytes(100))
    where = location if "://" in location else tmp_path / location
    with pytest.raises(error, match=message):
        ReplayBuffer.open(where)


def test_a_zip_with_a_folder_around_the_data_says_so(recorded, tmp_path):
    archive = shutil.make_archive(str(tmp_path / "nested"), "zip", recorded.parent, recorded.name)
    with pytest.raises(ValueError, match=r"no zarr group at the top of the zip, .*found"):
        ReplayBuffer.open(archive)


def test_a_wrong_mode_is_named(recorded):
    with pytest.raises(ValueError, match="mode is 'w'"):
        ReplayBuffer.open(recorded, mode="w")
