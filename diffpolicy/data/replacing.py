"""New versions of a data set in a directory: written beside it, then swapped in, whenever the process is killed."""

from __future__ import annotations

import glob
import os
import re
import shutil
import warnings
from pathlib import Path

from diffpolicy.data.groups import open_group
from diffpolicy.data.mark import NAME as MARK

_ROOT_NAMES = {"zarr.json", "data", "meta"}  # all entries of our buffers; a half-removed one has some of them
_UUID = "[0-9a-f]" * 32  # in the names of zarr's and our own unfinished files
_UNFINISHED = re.compile(rf".*\.{_UUID}\.partial")


def swap(path: Path) -> None:
    """Replace the directory `path` with its finished sibling `next_of(path)`."""
    os.rename(path, previous_of(path))
    _move_unless_done(next_of(path), path)
    shutil.rmtree(previous_of(path))


def finish_swap(path: Path) -> None:
    """Complete a swap whose process died between the two renames, which leaves both siblings whole."""
    if path.exists() or not _is_whole(previous_of(path)):
        return
    whole = next_of(path) if _is_whole(next_of(path)) else previous_of(path)
    warnings.warn(f"{path}: finishing an interrupted drop_episodes from {whole.name}", stacklevel=4)
    _move_unless_done(whole, path)


def _move_unless_done(whole: Path, path: Path) -> None:
    try:
        os.rename(whole, path)
    except FileNotFoundError:
        if not path.exists():  # otherwise another process has finished the swap
            raise


def _is_whole(folder: Path) -> bool:
    """Whether we wrote the buffer in `folder`: anything else of that name is left alone."""
    try:
        return MARK in open_group(str(folder)).attrs
    except Exception:  # nothing there, or a folder that zarr cannot read
        return False


def discard_leftovers(path: Path) -> None:
    """Remove what killed writers left beside and inside our directory `path`. Only its single writer may call this."""
    following = glob.escape(next_of(path).name.lstrip("."))
    for leftover in (previous_of(path), next_of(path), *path.parent.glob(f".{following}.{_UUID}.partial")):
        if leftover.is_dir():
            names = {each.name for each in leftover.iterdir() if not _UNFINISHED.fullmatch(each.name)}
            if names <= _ROOT_NAMES:
                shutil.rmtree(leftover, ignore_errors=True)
    for leftover in path.rglob(f"*.{_UUID}.partial"):
        leftover.unlink()


def next_of(path: Path) -> Path:
    """Where drop_episodes puts the new version, which gets this name only once it is complete."""
    return path.with_name(f".{path.name}.next")


def previous_of(path: Path) -> Path:
    """Where drop_episodes keeps the old version until the new one is in place."""
    return path.with_name(f".{path.name}.previous")
