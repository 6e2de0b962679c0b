"""Damaged and unsuitable data sets: the error names the file and the feature, and nothing half-written is left."""

import json
import struct
from collections.abc import Callable
from pathlib import Path

import av
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diffpolicy.data.replay_buffer import ReplayBuffer
from diffpolicy.formats import convert, open_recording, recognise
from diffpolicy.formats.table import WriteSettings

DATA = "data/chunk-000/file-000.parquet"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"
TOP = "observation.images.top"
VIDEO = f"videos/{TOP}/chunk-000/file-000.mp4"
Damage = Callable[[Path], object]


def edit_info(**changes: object) -> Damage:
    def damage(root: Path) -> None:
        path = root / "meta/info.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return damage


def edit_feature(name: str, **changes: object) -> Damage:
    def damage(root: Path) -> None:
        path = root / "meta/info.json"
        info = json.loads(path.read_text())
        info["features"].setdefault(name, {"names": None}).update(changes)
        path.write_text(json.dumps(info))

    return damage


def edit_table(file: str, **columns: list) -> Damage:
    def damage(root: Path) -> None:
        table = pq.read_table(root / file)
        for name, values in columns.items():
            name = name.replace("__", "/")
            kind = table.schema.field(name).type if name in table.column_names else None
            new = pa.array(values, kind if kind is None or not pa.types.is_fixed_size_list(kind) else None)
            table = table.set_column(table.column_names.index(name), name, new)
        pq.write_table(table, root / file)

    return damage


def cut(file: str, share: float = 0.5) -> Damage:
    return lambda root: (root / file).write_bytes(
        (root / file).read_bytes()[: int(share * (root / file).stat().st_size)]
    )


def garble(file: str) -> Damage:
    """Overwrite the frames of a video, between its head and its index."""

    def damage(root: Path) -> None:
        content = bytearray((root / file).read_bytes())
        start = content.index(b"mdat") + 4
        size = struct.unpack(">I", content[start - 8 : start - 4])[0]
        content[start : start + size - 8] = bytes(i * 7 % 251 for i in range(size - 8))
        (root / file).write_bytes(content)

    return damage


def other_video(fps: int, size: int, frames: int) -> Damage:
    def damage(root: Path) -> None:
        with av.open(str(root / VIDEO), "w") as container:
            stream = container.add_stream("libx264", rate=fps)
            stream.width = stream.height = size
            for _ in range(frames):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((size, size, 3), np.uint8))))
            container.mux(stream.encode())

    return damage


def many_frames(root: Path) -> None:
    """Metadata that agree on 1e11 frames, which would be a terabyte of row numbers alone."""
    many = 10**11
    edit_table(EPISODES, length=[many, 3], dataset_from_index=[0, many], dataset_to_index=[many, many + 3])(root)
    edit_info(total_frames=many + 3)(root)


def remove(file: str) -> Damage:
    return lambda root: (root / file).unlink()


# What is wrong -> fixture, damage, what the message says.
LEROBOT: dict[str, tuple[str, Damage, str]] = {
    "another version": (
        "png",
        edit_info(codebase_version="v1.6"),
        r"info.json: a data set of version 'v1.6', expected",
    ),
    "no rate": ("png", edit_info(fps=0), r"info.json: fps 0(.0)? must be above 0"),
    "fewer episodes": ("png", edit_info(total_episodes=3), r"describes 2 episodes, expected 0 to 2"),
    "fewer frames": ("png", edit_info(total_frames=9), r"8 frames together, expected 9"),
    "path leads out": ("png", edit_info(data_path="../{chunk_index}"), r"path '\.\./{chunk_index}' is refused"),
    "path runs code": ("png", edit_info(data_path="{chunk_index.real}"), r"path '{chunk_index.real}' is refused"),
    "length of an episode": (
        "png",
        edit_table(EPISODES, length=[4, 4]),
        r"meta/episodes, episode 0: has length 4, but rows 0 to 5",
    ),
    "rows of a file": (
        "png",
        lambda root: (
            edit_table(EPISODES, length=[6, 3], dataset_to_index=[6, 9], dataset_from_index=[0, 6])(root),
            edit_info(total_frames=9)(root),
        ),
        r"file-000.parquet: has 8 rows, but the metadata give its episodes 0 to 1 9",
    ),
    "rows of another episode": (
        "png",
        edit_table(DATA, episode_index=[0, 0, 0, 0, 1, 1, 1, 1]),
        r"file-000.parquet: episode_index is 1 in row 4, the metadata expect 0",
    ),
    "another rate": ("png", edit_info(fps=20), r"timestamp is 0.1 s in row 1, .* not 20 steps per second"),
    "truncated parquet": ("png", cut(DATA), r"data/chunk-000/file-000.parquet: truncated or corrupt"),
    "truncated episodes": ("png", cut(EPISODES), r"meta/episodes/chunk-000/file-000.parquet: truncated or corrupt"),
    "no parquet": ("png", remove(DATA), r"data/chunk-000/file-000.parquet: is missing"),
    "no tasks": ("png", remove("meta/tasks.parquet"), r"tasks.parquet"),
    "a feature that is not there": (
        "png",
        edit_feature("observation.force", dtype="float32", shape=[3]),
        r"file-000.parquet: no column 'observation.force'",
    ),
    "another shape": (
        "png",
        edit_feature("observation.state", shape=[4]),
        r"feature 'observation.state': rows have lengths \[3\], expected shape \(4,\)",
    ),
    "a changing shape": (
        "png",
        edit_table(DATA, **{"observation.state": [[1.0, 2.0, 3.0]] * 7 + [[1.0, 2.0]]}),
        r"feature 'observation.state': rows have lengths \[2, 3\]",
    ),
    "texts instead of numbers": (
        "png",
        edit_feature("task", dtype="string", shape=[1]),
        r"feature 'task' is string, expected numbers, images or video; leave it out with 'leave_out=\[task\]'",
    ),
    "not a number": (
        "png",
        edit_table(DATA, **{"next.reward": [0.0] * 6 + [float("nan"), 0.0]}),
        r"array 'next.reward' holds NaN or inf in episode 1 at step 1",
    ),
    "an empty row": (
        "png",
        edit_table(DATA, **{"next.reward": [0.0] * 7 + [None]}),
        r"feature 'next.reward': 1 rows are empty",
    ),
    "another size of images": (
        "png",
        edit_feature(TOP, shape=[32, 16, 3]),
        rf"feature '{TOP}', row 0 of row group 0: is an image of 16 x 16 pixels, mode RGB; expected 32 x 16",
    ),
    "no image": (
        "png",
        edit_table(DATA, **{TOP: [{"bytes": b"\x89PNG\r\n\x1a\nno", "path": ""}] * 8}),
        rf"feature '{TOP}', row 0 of row group 0: truncated or corrupt",
    ),
    "a bomb": ("png", edit_feature("action", shape=[2**20, 64]), r"feature 'action': needs 2147483648 bytes in memory"),
    "a larger bomb": (
        "png",
        edit_feature("action", shape=[2**20, 2**20]),
        r"feature 'action' has rows of 4398046511104 ",
    ),
    "a bomb of images": (
        "png",
        edit_feature(TOP, shape=[2**20, 2**20, 3]),
        rf"feature '{TOP}' has rows of 3298534883328 ",
    ),
    "many frames": ("png", many_frames, r"the data set: needs 100000000003 bytes in memory"),
    "no video": ("mp4", remove(VIDEO), rf"file-000.mp4: is missing, feature '{TOP}' needs it"),
    "truncated video": ("mp4", cut(VIDEO, 0.9), rf"file-000.mp4: feature '{TOP}': truncated or corrupt"),
    "frames that do not decode": ("mp4", garble(VIDEO), rf"file-000.mp4: feature '{TOP}': "),
    "a video of another rate": ("mp4", other_video(25, 64, 8), rf"feature '{TOP}': 25 frames per second, expected 10"),
    "a video of another size": ("mp4", other_video(10, 32, 8), rf"feature '{TOP}': frames of 32 x 32 pixels, expected"),
    "a video that is too short": ("mp4", other_video(10, 64, 6), rf"feature '{TOP}': no frame at 0.600 s, it ends"),
}


@pytest.mark.parametrize("what", LEROBOT)
def test_a_damaged_lerobot_data_set_is_refused_by_name(what: str, fixture_copy, tmp_path: Path):
    name, damage, message = LEROBOT[what]
    root = fixture_copy(f"lerobot_v3_{name}")
    damage(root)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        convert(open_recording(str(root), "lerobot"), tmp_path / "out.zarr", "zarr")
    assert not (tmp_path / "out.zarr").exists()
    left = {path.name for path in tmp_path.iterdir()} - {"copy"}
    assert left <= {".out.zarr.converting"}  # where a rerun goes on


def test_a_rerun_goes_on_with_the_chunks_that_are_there(fixture_copy, tmp_path: Path):
    root, output = fixture_copy("lerobot_v3_mp4"), tmp_path / "out.zarr"
    whole = (root / VIDEO).read_bytes()
    cut(VIDEO, 0.9)(root)
    with pytest.raises(ValueError, match="truncated"):
        convert(open_recording(str(root), "lerobot"), output, "zarr")
    chunk = tmp_path / ".out.zarr.converting/data/action/c/0/0"
    written = chunk.stat().st_mtime_ns
    (root / VIDEO).write_bytes(whole)
    convert(open_recording(str(root), "lerobot"), output, "zarr")
    assert (output / "data/action/c/0/0").stat().st_mtime_ns == written
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "out.zarr"]
    assert ReplayBuffer.open(output).n_episodes == 2


def test_the_conversion_of_something_else_is_not_mixed_in(fixture_copy, tmp_path: Path):
    root, output = fixture_copy("lerobot_v3_mp4"), tmp_path / "out.zarr"
    cut(VIDEO, 0.9)(root)
    with pytest.raises(ValueError, match="truncated"):
        convert(open_recording(str(root), "lerobot"), output, "zarr")
    other = fixture_copy("robomimic.hdf5")
    with pytest.raises(ValueError, match="unfinished conversion of something else"):
        convert(open_recording(str(other), "robomimic"), output, "zarr")


def test_what_is_in_the_way_or_does_not_fit_is_said(fixture_copy, tmp_path: Path):
    source = open_recording(str(fixture_copy("lerobot_v3_png")), "lerobot")
    (tmp_path / "there").mkdir()
    cases = [
        (FileExistsError, "exists already", {"output": tmp_path / "there"}),
        (ValueError, "has 10 steps per second, but fps is 20", {"settings": WriteSettings(fps=20)}),
        (ValueError, "leave_out names .'nothing'.", {"leave_out": ["nothing"]}),
        (ValueError, "leave_out leaves no array", {"leave_out": source.keys}),
        (ValueError, "to: 'tfds' is unknown, expected one of lerobot, robomimic, zarr", {"to": "tfds"}),
        (ValueError, "images 'gif' must be one of png, video", {"settings": WriteSettings(images="gif")}),
        (
            ValueError,
            "images of 16 x 16 x 3 do not go into a video",
            {"settings": WriteSettings(images="video"), "to": "lerobot"},
        ),
    ]
    for kind, message, changes in cases:
        with pytest.raises(kind, match=message):
            convert(**{"source": source, "output": tmp_path / "out", "to": "zarr", **changes})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "there"]


def test_a_data_set_without_a_rate_needs_one_for_lerobot(fixture_copy, tmp_path: Path):
    source = open_recording(str(fixture_copy("minari")), "minari")
    with pytest.raises(ValueError, match="does not say how many steps per second it has; give fps=NUMBER"):
        convert(source, tmp_path / "out", "lerobot")
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_what_is_no_data_set_is_not_recognised(tmp_path: Path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.csv").touch()
    (tmp_path / "a.csv").write_text("1,2")
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["x"] = [1]
    for name, message in {
        "folder": r"no data set that is known: found \['a.csv'\], expected one of meta/info.json, ",
        "a.csv": "is neither a zip nor a directory",
        "a.hdf5": r"holds neither data \(robomimic\) nor episode_0 \(Minari\); found \['x'\]",
    }.items():
        with pytest.raises(ValueError, match=message):
            recognise(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        recognise(tmp_path / "nothing")
