"""Durable writing: files and folders are forced to disk before they get their names."""

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text to a temporary sibling and rename it; a killed process or a power cut leaves the old file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write_bytes(temporary, text.encode())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file and force its content to disk; its name is durable only after `sync_folder`."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def staging(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of the folder `path`; rename it to `path` at the end, or remove it on an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name.lstrip('.')}.{uuid.uuid4().hex}.partial")
    try:
        yield temporary
        sync_tree(temporary)
        os.rename(temporary, path)
        sync_folder(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def sync_tree(folder: Path) -> None:
    """Force all files and names below `folder` to disk, so that it may be given its final name."""
    mode = "rb+" if os.name == "nt" else "rb"  # Windows syncs only files that are open for writing
    for root, _, files in os.walk(folder):
        for name in files:
            with open(os.path.join(root, name), mode) as file:
                os.fsync(file.fileno())
        sync_folder(Path(root))


def sync_folder(folder: Path) -> None:
    """Force new names in `folder` to disk; Windows has no such call."""
    if os.name != "nt":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):  # some network file systems refuse it for folders
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
