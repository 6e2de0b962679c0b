"""Data sets are found where they are, and downloaded whole or not at all; over a real server on this machine."""

import io
import shutil
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from one_case import over

from diffpolicy.data.archive import unpack_zip
from diffpolicy.data.locate import Download, cache_folder, checksum, find_data_set
from diffpolicy.data.replay_buffer import ReplayBuffer

NAME = "toy/recorded.zarr"
KEYS = ("action", "state")


class Handler(BaseHTTPRequestHandler):
    """Serves `content`; under /broken only half of the promised bytes."""

    content = b""
    requests: list[str] = []  # noqa: RUF012

    def do_GET(self):
        self.requests.append(self.path)
        if self.path == "/missing.zip":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        self.wfile.write(self.content[: len(self.content) // 2] if self.path == "/broken.zip" else self.content)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server() -> Iterator[str]:
    Handler.requests = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_address[1]}"
        http.shutdown()


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("DIFFPOLICY_DATA", raising=False)
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    return tmp_path / "cache" / "diffpolicy"


@pytest.fixture
def archive(recorded, tmp_path) -> bytes:
    """The recorded buffer as its host would offer it: a zip with a folder around it."""
    shutil.copytree(recorded, tmp_path / "host" / "folder" / "recorded.zarr")
    return Path(shutil.make_archive(str(tmp_path / "host" / "toy"), "zip", tmp_path / "host", "folder")).read_bytes()


def downloads(url: str, sha256: str) -> dict[str, Download]:
    return {NAME: Download(url=url, keys=KEYS, sha256=sha256)}


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()] if folder.exists() else []


def test_downloads_once_checks_and_keeps(server, cache, archive, recorded):
    Handler.content = archive
    known = downloads(f"{server}/toy.zip", checksum(recorded, KEYS))
    found = find_data_set(NAME, known)
    assert found == str(cache / NAME)
    assert ReplayBuffer.open(found).episode_ends.tolist() == [4, 5, 11]
    assert find_data_set(NAME, known) == found
    assert Handler.requests == ["/toy.zip"]
    assert [path.name for path in (cache / "toy").iterdir()] == ["recorded.zarr"]


def member(name: str, link: bool = False) -> bytes:
    path = Path(name).name + ".zip"
    entry = zipfile.ZipInfo(name)
    entry.external_attr = (0o120777 if link else 0o100644) << 16
    with zipfile.ZipFile(file := io.BytesIO(), "w") as made:
        made.writestr(entry, path)
    return file.getvalue()


def half(archive: bytes) -> bytes:
    return archive[: len(archive) // 2]


def damaged(archive: bytes) -> bytes:
    """A changed byte in the largest member's contents."""
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        first = max(opened.infolist(), key=lambda entry: entry.compress_size)
    place = first.header_offset + 30 + len(first.filename) + first.compress_size // 2
    return archive[:place] + bytes([archive[place] ^ 255]) + archive[place + 1 :]


@over(
    "file, change, error, message",
    [
        ("toy.zip", lambda archive: archive, ValueError, r"SHA-256 is [0-9a-f]{64}, expected 00.*DIFFPOLICY_DATA"),
        ("broken.zip", lambda archive: archive, ConnectionError, r"broken.zip: cannot be downloaded.*DIFFPOLICY_DATA"),
        ("missing.zip", lambda archive: archive, ConnectionError, r"missing.zip: cannot be downloaded .*404"),
        ("toy.zip", half, ValueError, r"not a whole zip"),
        ("toy.zip", damaged, ValueError, r"not a whole zip"),
        ("toy.zip", lambda archive: b"<html>", ValueError, r"not a whole zip"),
        ("toy.zip", lambda archive: member("other.txt"), ValueError, r"holds no 'recorded.zarr', found \['other.txt'"),
        ("toy.zip", lambda archive: member("../evil.txt"), ValueError, r"'../evil.txt' leads out"),
        ("toy.zip", lambda archive: member("/evil.txt"), ValueError, r"'/evil.txt' leads out"),
        ("toy.zip", lambda archive: member("recorded.zarr", link=True), ValueError, r"is a link, refused"),
    ],
)
def test_a_failed_download_leaves_nothing_behind(server, cache, archive, tmp_path, file, change, error, message):
    Handler.content = change(archive)
    with pytest.raises(error, match=message):
        find_data_set(NAME, downloads(f"{server}/{file}", "0" * 64))
    assert files_in(cache) == []
    assert list(tmp_path.rglob("evil.txt")) == []


def test_a_zip_may_unpack_to_as_much_as_the_limit_and_to_no_byte_more(tmp_path):
    path = tmp_path / "two.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("one", bytes(600))
        made.writestr("two", bytes(400))
    unpack_zip(path, tmp_path / "whole", "two.zip", limit_bytes=1000)
    assert {path.name: path.stat().st_size for path in files_in(tmp_path / "whole")} == {"one": 600, "two": 400}
    with pytest.raises(ValueError, match=r"two.zip: unpacks to 1000 bytes, expected at most 999"):
        unpack_zip(path, tmp_path / "refused", "two.zip", limit_bytes=999)
    assert not (tmp_path / "refused").exists()


def test_without_a_network_the_url_and_the_way_out_are_named(cache):
    with pytest.raises(ConnectionError, match=r"http://127.0.0.1:9/toy.zip: cannot be downloaded.*DIFFPOLICY_DATA"):
        find_data_set(NAME, downloads("http://127.0.0.1:9/toy.zip", ""))
    assert files_in(cache) == []


def test_path_comes_before_data_folder_before_cache(cache, recorded, tmp_path, monkeypatch):
    in_cache, in_folder, here = (cache / NAME, tmp_path / "data" / NAME, tmp_path / "here" / NAME)
    for place in (in_cache, in_folder, here):
        shutil.copytree(recorded, place)
    assert find_data_set(NAME) == str(in_cache)
    monkeypatch.setenv("DIFFPOLICY_DATA", str(tmp_path / "data"))
    assert find_data_set(NAME) == str(in_folder)
    monkeypatch.chdir(tmp_path / "here")
    assert find_data_set(NAME) == NAME
    assert find_data_set(str(recorded)) == str(recorded)
    assert find_data_set("memory://somewhere") == "memory://somewhere"


def test_an_unknown_data_set_names_every_place_looked_at(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFPOLICY_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"'no/such.zarr' not found; looked at .*cache.*DIFFPOLICY_DATA"):
        find_data_set("no/such.zarr")


def test_shipped_demonstrations_are_found_from_any_folder(cache, repository, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "data/pusht_expert.zarr.zip"
    assert find_data_set(name) == str(repository / name)
    with pytest.raises(FileNotFoundError) as error:
        find_data_set("data/other.zarr")
    for place in (tmp_path / "data/other.zarr", repository / "data/other.zarr", cache / "data/other.zarr"):
        assert str(place) in str(error.value)


def test_a_data_folder_that_does_not_exist_is_named(cache, monkeypatch):
    monkeypatch.setenv("DIFFPOLICY_DATA", "/no/such/folder")
    with pytest.raises(FileNotFoundError, match="DIFFPOLICY_DATA is '/no/such/folder', expected a folder"):
        find_data_set("toy.zarr")


def test_cache_is_in_the_home_folder_by_default(monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "diffpolicy"


def test_checksum_is_of_the_contents_not_of_the_store(recorded, tmp_path, make_episode):
    buffer = ReplayBuffer.open(recorded, mode="a")
    buffer.pack(tmp_path / "packed.zip")
    assert checksum(recorded, KEYS) == checksum(tmp_path / "packed.zip", KEYS) == checksum(recorded, KEYS[::-1])
    assert checksum(recorded, KEYS) != checksum(recorded, ("action",))
    before = checksum(recorded, KEYS)
    buffer.append_episode(make_episode(1, 0))
    assert checksum(recorded, KEYS) != before
