"""The same episodes are read from every kind of store, and nothing is read that was not asked for."""

import functools
import os
import pickle
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
import zarr

from diffpolicy.data.demonstrations import load_demonstrations
from diffpolicy.data.locate import find_data_set
from diffpolicy.data.replay_buffer import ReplayBuffer
from diffpolicy.system.plain import MAX_BYTES


def as_directory(source: Path, folder: Path) -> str:
    return str(source)


def as_zip(source: Path, folder: Path) -> str:
    ReplayBuffer.open(source).pack(folder / "packed.zarr.zip")
    return str(folder / "packed.zarr.zip")


def as_memory_url(source: Path, folder: Path) -> str:
    fsspec.filesystem("memory").put(str(source), f"/{folder.name}", recursive=True)
    return f"memory://{folder.name}"


def as_file_url(source: Path, folder: Path) -> str:
    return f"file://{source}"


def as_format_2(source: Path, folder: Path) -> str:
    """As zarr 2 wrote it: chunks of 161 rows, no mark of ours."""
    buffer, root = ReplayBuffer.open(source), zarr.open_group(folder / "v2.zarr", mode="w", zarr_format=2)
    for key in buffer.keys:
        values = buffer[key]
        root.create_array(f"data/{key}", data=values, chunks=(161, *values.shape[1:]))
    root.create_array("meta/episode_ends", data=buffer.episode_ends)
    return str(folder / "v2.zarr")


STORES = [as_directory, as_zip, as_memory_url, as_file_url, as_format_2]


@pytest.mark.parametrize("convert", STORES)
def test_every_store_reads_the_same(recorded, tmp_path, convert):
    expected, found = ReplayBuffer.open(recorded), ReplayBuffer.open(convert(recorded, tmp_path))
    assert sorted(found.keys) == sorted(expected.keys)
    assert found.episode_ends.tolist() == [4, 5, 11]
    for key in expected.keys:
        np.testing.assert_array_equal(found[key], expected[key])
    found.close()


@pytest.mark.parametrize("convert", STORES)
def test_every_store_is_streamed_from_in_another_process_too(recorded, tmp_path, convert):
    location = convert(recorded, tmp_path)
    held = load_demonstrations(location, {"all": ["state[1:]", "count"]}).observations["all"]
    left = load_demonstrations(location, {"all": ["state[1:]", "count"]}, stream=["all"]).observations["all"]
    left = pickle.loads(pickle.dumps(left))  # how worker processes get it
    rows = torch.tensor([[10, 0], [3, 3], [4, 5]])
    assert tuple(left.shape) == held.shape
    assert torch.equal(left[rows], held[rows])
    assert torch.equal(torch.cat([*left.split(4)]), held)


@pytest.mark.parametrize("convert", STORES)
def test_every_store_can_be_copied_to_one_to_append_to(recorded, tmp_path, convert, make_episode):
    ReplayBuffer.open(convert(recorded, tmp_path)).copy(tmp_path / "mine.zarr")
    mine = ReplayBuffer.open(tmp_path / "mine.zarr", mode="a")
    mine.append_episode(make_episode(2, 3))
    assert mine.episode_ends.tolist() == [4, 5, 11, 13]


@pytest.mark.parametrize("convert", [as_zip, as_memory_url, as_file_url, as_format_2])
def test_only_our_own_directories_are_appended_to(recorded, tmp_path, convert):
    with pytest.raises(ValueError, match=r"buffer.copy\(path\)"):
        ReplayBuffer.open(convert(recorded, tmp_path), mode="a")


def test_stale_consolidated_metadata_are_never_trusted(recorded, make_episode):
    zarr.consolidate_metadata(recorded)
    zarr.consolidate_metadata(recorded, path="data")
    ReplayBuffer.open(recorded, mode="a").append_episode(make_episode(2, 3))
    assert ReplayBuffer.open(recorded).episode_ends.tolist() == [4, 5, 11, 13]
    for group in ("", "data"):
        others = zarr.open_group(recorded, mode="r", path=group)  # as other programs open it
        assert others[f"{'data/' if not group else ''}action"].shape == (13, 2)
    zarr.consolidate_metadata(recorded)
    again = ReplayBuffer.open(recorded, mode="a")
    again.append_episode(make_episode(3, 4))
    assert again.episode_ends.tolist() == [4, 5, 11, 13, 16]
    np.testing.assert_array_equal(ReplayBuffer.open(recorded)["action"][11:, 1], [3, 3, 4, 4, 4])


def test_stale_consolidated_metadata_of_format_2_are_never_trusted(recorded, tmp_path):
    path = as_format_2(recorded, tmp_path)
    zarr.consolidate_metadata(path)
    root = zarr.open_group(path, mode="r+", use_consolidated=False)
    for key in ("action", "state", "count"):
        root[f"data/{key}"].resize((4, *root[f"data/{key}"].shape[1:]))
    root["meta/episode_ends"].resize((1,))
    assert ReplayBuffer.open(path)["state"].shape == (4, 3)


def test_opening_and_reading_one_array_leaves_the_others_alone(recorded):
    for chunk in (recorded / "data" / "state" / "c").rglob("*"):
        if chunk.is_file():
            chunk.write_bytes(b"not a chunk")
    assert ReplayBuffer.open(recorded)["action"].shape == (11, 2)


@pytest.mark.parametrize("name", ["zarr.json", "data/state/zarr.json"])
def test_metadata_that_are_too_large_are_refused_unread(recorded: Path, name: str):
    with (recorded / name).open("r+b") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(ValueError, match=f"{name} has 67108865 bytes, expected at most 67108864"):
        ReplayBuffer.open(recorded)


def test_chunks_that_hold_only_zeros_are_written(tmp_path):
    buffer = ReplayBuffer.create(tmp_path / "zeros.zarr", {"value": ((2,), "float32")})
    for mode in ("a", "a"):
        buffer = ReplayBuffer.open(tmp_path / "zeros.zarr", mode=mode)
        buffer.append_episode({"value": np.zeros((5, 2))})
    assert ReplayBuffer.open(tmp_path / "zeros.zarr")["value"].sum() == 0


def test_a_relative_path_stays_good_in_another_working_folder(recorded, tmp_path, monkeypatch, make_episode):
    monkeypatch.chdir(tmp_path)
    buffer = ReplayBuffer.open(recorded.name, mode="a")
    monkeypatch.chdir("/")
    assert buffer["action"].shape == (11, 2)
    buffer.append_episode(make_episode(2, 3))
    buffer.drop_episodes([0])
    assert ReplayBuffer.open(recorded).episode_ends.tolist() == [1, 7, 9]


def test_importing_the_library_does_not_import_zarr():
    code = "import sys, diffpolicy, diffpolicy.control, diffpolicy.safety; assert 'zarr' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ)


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(recorded: Path) -> Iterator[str]:
    """Serves the folder in which `recorded` is."""
    handler = functools.partial(QuietHandler, directory=str(recorded.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_address[1]}"
        http.shutdown()


def test_a_server_gives_the_demonstrations_of_its_directory(recorded: Path, server: str):
    observations = {"pose": ["state[:2]", "count"]}
    here = load_demonstrations(recorded, observations)
    there = load_demonstrations(find_data_set(f"{server}/{recorded.name}"), observations)
    np.testing.assert_array_equal(there.actions, here.actions)
    np.testing.assert_array_equal(there.observations["pose"], here.observations["pose"])
    assert there.episode_ends.tolist() == here.episode_ends.tolist()


def test_a_data_set_that_a_server_does_not_have_is_named(server: str):
    with pytest.raises(FileNotFoundError, match=rf"{server}/nothing.zarr: no zarr group at this URL"):
        ReplayBuffer.open(f"{server}/nothing.zarr")


def test_a_chunk_that_a_server_lost_is_named(recorded: Path, server: str):
    (recorded / "data" / "state" / "c" / "0" / "0").unlink()
    with pytest.raises(ValueError, match=r"recorded.zarr: .*state.*c/0/0"):
        ReplayBuffer.open(f"{server}/recorded.zarr")


def test_a_host_that_does_not_answer_is_named():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))  # not listening: connections are refused
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/data.zarr"
        with pytest.raises(ConnectionError, match=rf"{url}: cannot be reached .*try again"):
            ReplayBuffer.open(url)


def test_a_kind_of_url_without_its_package_says_what_to_install():
    with pytest.raises(ImportError, match=r"s3://bucket/data.zarr: .*s3fs"):
        ReplayBuffer.open("s3://bucket/data.zarr")
    with pytest.raises(ValueError, match=r"carrier-pigeon://data.zarr: .*[Pp]rotocol"):
        ReplayBuffer.open("carrier-pigeon://data.zarr")
