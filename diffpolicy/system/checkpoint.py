"""Checkpoint folders: JSON and safetensors files with hashes, written atomically and read without pickle.

    config.json              settings, format version, and the SHA-256 of itself and of every other file
    NAME.safetensors         tensors

safetensors does not detect a flipped bit, so every file is hashed, and verified when it is read.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

FORMAT_VERSION = 3
READABLE = (1, 2, 3)  # diffpolicy.policy.migration converts the content of earlier formats
CONFIG = "config.json"


def write(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Write `config` and one file per entry of `tensors` (name -> tensors) into a new folder.

    The folder gets its name only once all of its content is on disk.

    Raises:
        FileExistsError: the folder already exists.
    """
    folder = folder.absolute()
    if folder.exists():
        raise FileExistsError(f"checkpoint: {folder} exists already; choose another folder or remove it first")
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        hashes: dict[str, str] = {}
        for name, group in tensors.items():
            file = f"{name}.safetensors"
            contiguous = {key: tensor.detach().cpu().contiguous() for key, tensor in group.items()}
            _write_bytes(unfinished / file, data := safetensors.torch.save(contiguous))
            hashes[file] = hashlib.sha256(data).hexdigest()
        content = {"format_version": FORMAT_VERSION, **config, "sha256": hashes}
        hashes[CONFIG] = _config_hash(content)
        _write_bytes(unfinished / CONFIG, json.dumps(content, indent=2).encode())
        unfinished.chmod(0o755)
        unfinished.rename(folder)
        _sync_folder(folder.parent)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def read_config(folder: Path) -> dict[str, Any]:
    """Read and verify the config.json of a checkpoint.

    Raises:
        FileNotFoundError: the folder holds no checkpoint.
        ValueError: the file is damaged or has an unknown format version.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint: no {CONFIG} in {folder}; expected a folder such as RUN/checkpoints/last")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"checkpoint: {path} is not valid JSON ({error}); restore it from a copy") from error
    version = content.get("format_version") if isinstance(content, dict) else None
    if version not in READABLE:
        raise ValueError(
            f"checkpoint: {path} has format_version {version!r}, this version reads {' or '.join(map(str, READABLE))}"
        )
    hashes = content.get("sha256")
    if not isinstance(hashes, dict) or hashes.get(CONFIG) != _config_hash(content):
        raise ValueError(f"checkpoint: {path} does not match its own SHA-256; it was changed or damaged")
    return content


def read_tensors(folder: Path, name: str) -> dict[str, Tensor]:
    """Read the tensors of NAME.safetensors and verify them against the hash in config.json.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: its content is not what was written.
    """
    file = f"{name}.safetensors"
    expected = read_config(folder)["sha256"].get(file)
    path = folder / file
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint: {path} is missing")
    data = path.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != expected:
        raise ValueError(f"checkpoint: {path} is damaged: SHA-256 {found[:12]}..., expected {str(expected)[:12]}...")
    return safetensors.torch.load(data)


def resolve(path: Path) -> Path:
    """Follow a text pointer (such as `last` on a file system without links) to the folder that it names.

    Raises:
        ValueError: `path` is a file but not a pointer.
    """
    if not path.is_file():
        return path
    name = path.read_bytes()[:256].decode("utf-8", errors="replace").strip()
    if not re.fullmatch(r"[\w.-]+", name) or not (path.parent / name).is_dir():
        raise ValueError(f"checkpoint: {path} is a file, expected a folder such as RUN/checkpoints/last")
    return path.parent / name


def point(link: Path, target: Path) -> None:
    """Point `link` at its sibling `target`, atomically: a relative link, or a text file where links do not work."""
    temporary = link.with_name(f".{link.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        temporary.symlink_to(target.name, target_is_directory=True)
    except OSError:
        temporary.write_text(target.name, encoding="utf-8")
    os.replace(temporary, link)
    _sync_folder(link.parent)


def _sync_folder(folder: Path) -> None:
    """Flush new names to disk, so that they survive a power cut; Windows has no such call."""
    if os.name != "nt":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):  # some network file systems refuse it for folders
                os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _write_bytes(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _config_hash(content: Mapping[str, Any]) -> str:
    others = {file: digest for file, digest in content["sha256"].items() if file != CONFIG}
    canonical = json.dumps({**content, "sha256": others}, sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def check_tensors(where: str, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Check that `found` has the names, shapes and dtypes of `expected`; `where` begins the error message.

    Raises:
        ValueError: they differ.
    """
    missing, extra = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if missing or extra:
        raise ValueError(f"{where}: missing tensors {missing}, unknown tensors {extra}")
    for name, tensor in expected.items():
        if found[name].shape != tensor.shape:
            raise ValueError(f"{where}: {name} has shape {list(found[name].shape)}, expected {list(tensor.shape)}")
        if found[name].dtype != tensor.dtype:
            raise ValueError(f"{where}: {name} is {found[name].dtype}, expected {tensor.dtype}")
