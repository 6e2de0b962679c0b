"""The checksum covers what describes the arrays, and what a store claims is bounded by the size of its files."""

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
from one_case import over

from diffpolicy.data.replay_buffer import ReplayBuffer


def change(file: str, edit: Callable[[Any], object]) -> Callable[[Path], None]:
    """A change of the JSON in one file of a store."""

    def damage(path: Path) -> None:
        content = json.loads((path / file).read_text())
        edit(content)
        (path / file).write_text(json.dumps(content))

    return damage


def mark(edit: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    return change("zarr.json", lambda content: edit(content["attributes"]["diffpolicy"]))


STATE, ENDS, META = "data/state/zarr.json", "meta/episode_ends/zarr.json", "meta/zarr.json"


@pytest.mark.filterwarnings("ignore:.*rows past the last episode end")
@over(
    "damage, message",
    [
        (change(STATE, lambda one: one.update(shape=[11, 1])), "do not match their SHA-256"),
        (change(STATE, lambda one: one.update(data_type="int32")), "do not match their SHA-256|cannot be decoded"),
        (change(META, lambda one: one["attributes"]["episodes"][0].update(seed=9)), "do not match their SHA-256"),
        (change(META, lambda one: one["attributes"].update(episodes=3)), "attribute 'episodes' of meta is 3"),
        (change(ENDS, lambda one: one.update(shape=[2])), "holds 2 episodes, expected 3"),
        (change(ENDS, lambda one: one.update(shape=[10**6])), "the first end is|not strictly increasing|missing"),
        (change(STATE, lambda one: one.update(shape=[10**12, 3])), "needs 12000000000000 bytes, but its files hold"),
        (mark(lambda one: one.update(arrays=None)), "has no|has version"),
        (mark(lambda one: one.update(arrays=["action"])), "do not match their SHA-256"),
        (mark(lambda one: one.pop("sha256")), "of version 2 has version, arrays, n_episodes, expected"),
        (mark(lambda one: one.update(version=99)), "version 99 must be between 1 and 2"),
        (change("zarr.json", lambda one: one["attributes"].update(diffpolicy=None)), "is None, expected a mapping"),
    ],
)
def test_changed_metadata_are_refused(
    recorded: Path, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    path = Path(shutil.copytree(recorded, Path(tempfile.mkdtemp(dir=tmp_path)) / "copy.zarr"))
    damage(path)
    with pytest.raises(ValueError, match=message) as error:
        _ = ReplayBuffer.open(path)["state"]
    assert str(path) in str(error.value)


def test_a_data_set_of_version_1_reads_and_is_appended_to(recorded: Path, make_episode) -> None:
    change("zarr.json", lambda one: one["attributes"].update(diffpolicy=old))(recorded)
    assert ReplayBuffer.open(recorded).keys == old["keys"]
    ReplayBuffer.open(recorded, mode="a").append_episode(make_episode(2, 3))
    assert json.loads((recorded / "zarr.json").read_text())["attributes"]["diffpolicy"]["n_episodes"] == 4
    assert ReplayBuffer.open(recorded).n_episodes == 4


old = {"version": 1, "keys": ["action", "state", "count"]}


def test_an_append_that_was_killed_before_the_checksum_is_kept(recorded: Path, make_episode, monkeypatch) -> None:
    buffer = ReplayBuffer.open(recorded, mode="a")
    monkeypatch.setattr(ReplayBuffer, "_write_mark", lambda self: None)
    buffer.append_episode(make_episode(2, 3))
    monkeypatch.undo()
    assert ReplayBuffer.open(recorded).n_episodes == 4
    for count in (5, 6):  # opening it to append writes the checksum
        ReplayBuffer.open(recorded, mode="a").append_episode(make_episode(2, count))
        assert ReplayBuffer.open(recorded).n_episodes == count


def theirs(path: Path, **options: Any) -> zarr.Group:
    root = zarr.open_group(path, mode="w", zarr_format=2)
    root.create_array("data/action", data=np.zeros((11, 2), dtype="float32") + 1, **options)
    root.create_array("meta/episode_ends", data=np.array([4, 11]))
    return root


@over("compressor, place", [("blosc", 4), ("lz4", 0), ("zstd", 5)])
def test_a_chunk_that_claims_more_than_its_shape_is_refused(tmp_path: Path, compressor: str, place: int) -> None:
    path = tmp_path / compressor
    theirs(path, compressors=numcodecs.get_codec({"id": compressor}))
    chunk = path / "data" / "action" / "0.0"
    assert ReplayBuffer.open(path)["action"].shape == (11, 2)
    data = chunk.read_bytes()
    if compressor == "zstd":  # a frame with its size in 4 bytes
        data = data[:4] + b"\xa0" + data[5:]
    chunk.write_bytes(data[:place] + (10**8).to_bytes(4, "little") + data[place + 4 :])
    with pytest.raises(ValueError, match="decodes to more than the"):
        _ = ReplayBuffer.open(path)["action"]


@over("compressor", ["gzip", "bz2", "lzma", "zlib"])
def test_a_compressor_without_a_size_in_its_header_is_stopped(tmp_path: Path, compressor: str) -> None:
    path = tmp_path / compressor
    codec = numcodecs.get_codec({"id": compressor})
    theirs(path, compressors=codec)
    assert ReplayBuffer.open(path)["action"].shape == (11, 2)
    (path / "data" / "action" / "0.0").write_bytes(codec.encode(bytes(10**7)))
    with pytest.raises(ValueError, match="decodes to more than the"):
        _ = ReplayBuffer.open(path)["action"]


def test_chunks_far_larger_than_the_array_are_refused(tmp_path: Path) -> None:
    theirs(tmp_path / "large")
    change("data/action/.zarray", lambda one: one.update(chunks=[10**9, 2]))(tmp_path / "large")
    with pytest.raises(ValueError, match="more than the whole array"):
        _ = ReplayBuffer.open(tmp_path / "large")["action"]
