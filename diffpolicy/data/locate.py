"""Locating a task's data set: a path, a URL, the shipped files, $DIFFPOLICY_DATA, the cache, or its official host."""

from __future__ import annotations

import hashlib
import os
import tempfile
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import numpy as np

from diffpolicy.data.archive import unpack_zip
from diffpolicy.data.replay_buffer import ReplayBuffer
from diffpolicy.system import shipped
from diffpolicy.system.files import sync_folder, sync_tree

DATA_VARIABLE = "DIFFPOLICY_DATA"
TIMEOUT_S = 30
BLOCK_BYTES = 2**18


@dataclass(frozen=True)
class Download:
    """A published data set: a zip at `url`. Its zarr directory is named like the last part of the data set's name."""

    url: str
    keys: tuple[str, ...]  # the arrays that the checksum covers
    sha256: str  # as computed by `checksum`


DOWNLOADS: Mapping[str, Download] = {
    "pusht_human/pusht_cchi_v7_replay.zarr": Download(
        url="https://diffusion-policy.cs.columbia.edu/data/training/pusht.zip",
        keys=("action", "keypoint", "n_contacts", "state"),
        sha256="03b97c0691518e6213223b7f13448ee0485a1c5af8be3a93e21d597bd7bc7da5",
    ),
}


def find_data_set(name: str, downloads: Mapping[str, Download] = DOWNLOADS) -> str:
    """The location of a data set; a known one that is not found locally is downloaded to the cache.

    Looks for `name` as a URL or path, among the shipped files, in $DIFFPOLICY_DATA and in the cache. Each error says
    what to do.

    Raises:
        FileNotFoundError: the data set is unknown, or $DIFFPOLICY_DATA is not a folder.
        ConnectionError: there is no network, or the transfer broke off.
        ValueError: the download has the wrong contents.
    """
    if "://" in name:
        return name
    if (found := shipped.find_shipped(name)).exists():
        return str(found)
    folder = os.environ.get(DATA_VARIABLE)
    if folder and not Path(folder).is_dir():
        raise FileNotFoundError(f"{DATA_VARIABLE} is {folder!r}, expected a folder that holds data sets")
    places = [Path(folder) / name] if folder else []
    places.append(cache_folder() / name)
    for place in places:
        if place.exists():
            return str(place)
    if name not in downloads:
        looked = ", ".join(str(place) for place in [*shipped.places(name), *places])
        raise FileNotFoundError(
            f"data set {name!r} not found; looked at {looked}. Give an existing path, or set {DATA_VARIABLE} to the "
            "folder that holds it"
        )
    return str(_fetch(name, downloads[name], cache_folder() / name))


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/diffpolicy, by default ~/.cache/diffpolicy."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diffpolicy"


def checksum(location: str | os.PathLike[str], keys: tuple[str, ...]) -> str:
    """SHA-256 of the decoded `keys` and episode_ends; independent of zarr format, chunking and compression."""
    buffer = ReplayBuffer.open(location)
    digest = hashlib.sha256()
    for key in sorted(keys):
        _update(digest, key, buffer[key])
    _update(digest, "episode_ends", buffer.episode_ends)
    buffer.close()
    return digest.hexdigest()


def _update(digest: hashlib._Hash, key: str, values: np.ndarray) -> None:
    values = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
    digest.update(f"{key} {values.dtype.str} {values.shape}\n".encode())
    digest.update(values.tobytes())


def _fetch(name: str, download: Download, target: Path) -> Path:
    """Download, unpack, check, and only then move to `target`; after an error nothing is left behind."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".download-", dir=target.parent) as temporary:
        archive, unpacked = Path(temporary) / "archive.zip", Path(temporary) / "unpacked"
        _transfer(download.url, archive, label=name)
        unpack_zip(archive, unpacked, label=download.url)
        found = next(unpacked.rglob(target.name), None)
        if found is None:
            raise ValueError(f"{download.url}: the zip holds no {target.name!r}, found {os.listdir(unpacked)}")
        actual = checksum(found, download.keys)
        if actual != download.sha256:
            raise ValueError(
                f"{download.url}: the arrays' SHA-256 is {actual}, expected {download.sha256}: this is not the data "
                f"set that the task was built for. Put a trusted copy into a folder and set {DATA_VARIABLE} to it"
            )
        if not target.exists():  # another process may have finished first
            sync_tree(found)
            os.replace(found, target)
            sync_folder(target.parent)
    return target


def _transfer(url: str, target: Path, label: str) -> None:
    from tqdm import tqdm

    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response, open(target, "wb") as file:
            length = response.headers.get("Content-Length")
            expected = int(length) if length else None
            with tqdm(total=expected, unit="B", unit_scale=True, desc=f"download {label}") as progress:
                while block := response.read(BLOCK_BYTES):
                    file.write(block)
                    progress.update(len(block))
        received = target.stat().st_size
        if expected is not None and received != expected:
            raise ConnectionError(f"the transfer broke off after {received} of {expected} bytes")
    except (OSError, HTTPException) as error:  # URLError, timeouts and lost connections are OSErrors
        raise ConnectionError(
            f"{url}: cannot be downloaded ({error}). Try again, or download and unpack it elsewhere and set "
            f"{DATA_VARIABLE} to the folder that holds {label}"
        ) from error
