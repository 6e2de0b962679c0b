"""Checkpoint folders: JSON and safetensors files with hashes, written atomically and read without pickle.

    config.json              settings, format version, and the SHA-256 of itself and of every other file
    NAME.safetensors         tensors
    README.md                for people, in a policy that was saved to be passed on; not hashed

safetensors does not detect a flipped bit, so every other file is hashed, and verified when it is read. The hashes
detect accidents, not attackers, so what a file claims is checked as well: the header of a file of tensors is compared
with the tensors that are expected before anything is loaded.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import safetensors.torch
from torch import Tensor

from diffpolicy.system import tensor_file
from diffpolicy.system.files import sync_folder, write_bytes
from diffpolicy.system.plain import parsed, read_bounded, shown

FORMAT_VERSION = 5
READABLE = (1, 2, 3, 4, 5)  # diffpolicy.policy.migration converts the content of earlier formats
CONFIG = "config.json"
TRIES = 20  # a checkpoint that is replaced more often than this while it is read is an error

Result = TypeVar("Result")
Migrated = Callable[[int, Mapping[str, Tensor]], Mapping[str, Tensor]]
"""(format version, tensors of that format) -> tensors of the current format."""


def write(
    folder: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, Mapping[str, Tensor]],
    texts: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Write `config` and one file per entry of `tensors` (name -> tensors) into a new folder.

    `texts` are other files, by their names; they are for people, who may change them, so they are not hashed.

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
            write_bytes(unfinished / file, data := safetensors.torch.save(contiguous))
            hashes[file] = hashlib.sha256(data).hexdigest()
        for name, text in texts.items():
            write_bytes(unfinished / name, text.encode())
        content = {"format_version": FORMAT_VERSION, **config, "sha256": hashes}
        hashes[CONFIG] = _config_hash(content)
        write_bytes(unfinished / CONFIG, json.dumps(content, indent=2, allow_nan=False).encode())
        unfinished.chmod(0o755)
        sync_folder(unfinished)
        unfinished.rename(folder)
        sync_folder(folder.parent)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


@dataclass(frozen=True)
class Saved:
    """One checkpoint that is being read.

    Attributes:
        folder: where it lies, with all links followed.
        config: the verified content of its config.json.
    """

    folder: Path
    config: Mapping[str, Any]

    @property
    def version(self) -> int:
        """The format that it was written in."""
        return self.config["format_version"]

    def tensors(
        self,
        name: str,
        expected: tensor_file.Specs | None = None,
        migrated: Migrated = lambda version, tensors: tensors,
    ) -> Mapping[str, Tensor]:
        """Read the tensors of NAME.safetensors and verify them against the hash in config.json.

        Args:
            expected: what must be there; compared with the header before the file is read.
            migrated: turns tensors of a format into those of the current one.

        Raises:
            FileNotFoundError: the file is missing.
            ValueError: its content is not what was written, or not what is expected.
        """
        path = self.folder / f"{name}.safetensors"
        if not path.is_file():
            raise FileNotFoundError(f"checkpoint: {path} is missing")
        with path.open("rb") as file:
            if expected is not None:
                found = migrated(self.version, tensor_file.header(file, f"checkpoint: {path}"))
                tensor_file.check(tensor_file.specs(found), expected, f"checkpoint: {path}")
            data = file.read()
        found, written = hashlib.sha256(data).hexdigest(), self.config["sha256"].get(path.name)
        if found != written:
            raise ValueError(f"checkpoint: {path} is damaged: SHA-256 {found[:12]}..., expected {str(written)[:12]}...")
        return migrated(self.version, tensor_file.loaded(data, f"checkpoint: {path}"))


def load(path: Path, use: Callable[[Saved], Result]) -> Result:
    """Read the checkpoint in the folder `path`, or that a link or text pointer such as `last` names, with `use`.

    A link is followed once, so that all of one call comes from one folder. If that folder is replaced or removed
    meanwhile, `use` is called again with the checkpoint that `path` names then.

    Raises:
        FileNotFoundError: the folder holds no checkpoint.
        ValueError: a file is damaged or has an unknown format version.
    """
    for _ in range(TRIES):
        before = _stamp(path)
        try:
            folder = resolve(path).resolve()
            return use(Saved(folder, _config(folder)))
        except (OSError, ValueError):
            if _stamp(path) == before:
                raise
    raise ValueError(f"checkpoint: {path} was replaced {TRIES} times while it was read; name a step's own folder")


def read_config(folder: Path) -> dict[str, Any]:
    """Read and verify the config.json of a checkpoint; raises as `load`."""
    return load(folder, lambda saved: dict(saved.config))


def read_tensors(folder: Path, name: str) -> dict[str, Tensor]:
    """Read and verify the tensors of NAME.safetensors; raises as `load` and `Saved.tensors`."""
    return load(folder, lambda saved: dict(saved.tensors(name)))


def resolve(path: Path) -> Path:
    """Follow a text pointer (such as `last` on a file system without links) to the folder that it names.

    Raises:
        ValueError: `path` is a file but not a pointer.
    """
    if not path.is_file():
        return path
    with path.open("rb") as file:
        name = file.read(256).decode("utf-8", errors="replace").strip()
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
        write_bytes(temporary, target.name.encode())
    os.replace(temporary, link)
    sync_folder(link.parent)


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint: no {CONFIG} in {folder}; expected a folder such as RUN/checkpoints/last")
    content = parsed(read_bounded(path), f"checkpoint: {path}")
    version = content.get("format_version") if isinstance(content, dict) else None
    if not isinstance(version, int) or isinstance(version, bool) or version not in READABLE:
        known = " or ".join(map(str, READABLE))
        raise ValueError(f"checkpoint: {path} has format_version {shown(version)}, this version reads {known}")
    hashes = content.get("sha256")
    if not isinstance(hashes, dict) or hashes.get(CONFIG) != _config_hash(content):
        raise ValueError(f"checkpoint: {path} does not match its own SHA-256; it was changed or damaged")
    return content


def _stamp(path: Path) -> object:
    """What changes if the checkpoint that `path` names is replaced or removed."""
    try:
        folder = resolve(path).resolve(strict=True)
        of_config = (folder / CONFIG).stat()
        return folder, folder.stat().st_ino, of_config.st_ino, of_config.st_mtime_ns
    except (OSError, ValueError):
        return None


def _config_hash(content: Mapping[str, Any]) -> str:
    others = {file: digest for file, digest in content["sha256"].items() if file != CONFIG}
    canonical = json.dumps({**content, "sha256": others}, sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()
