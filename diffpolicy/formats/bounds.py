"""What a file may claim: how much memory it stands for, and where in its folder other files lie."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from diffpolicy.data.memory_bounds import FREE_BYTES, MOST_INFLATION
from diffpolicy.system.plain import shown, shown_text

_FIELD = re.compile(r"\{(\w+)(?::0(\d)d)?\}")


def check_claim(where: str, claimed_bytes: int, stored_bytes: int) -> None:
    """Raise ValueError if a file claims to hold far more than its size can stand for."""
    if claimed_bytes > max(FREE_BYTES, MOST_INFLATION * stored_bytes):
        raise ValueError(f"{where}: needs {claimed_bytes} bytes in memory, but only {stored_bytes} bytes are stored")


def filled(template: str, values: Mapping[str, str | int], where: str) -> str:
    """Fill the fields of a path such as "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet".

    Unlike `str.format`, it knows only plain names and zero-padded numbers, because the template comes from a file.

    Raises:
        ValueError: the template has another field, or leads out of its folder.
    """

    def value(match: re.Match[str]) -> str:
        name, width = match.groups()
        if name not in values:
            raise ValueError(f"{where}: path {shown(template)} has the field {name}, expected {', '.join(values)}")
        return str(values[name]).zfill(int(width or 0))

    path = _FIELD.sub(value, template)
    parts = PurePosixPath(path.replace("\\", "/"))
    if "{" in path or "}" in path or parts.is_absolute() or ".." in parts.parts or ":" in path or "\0" in path:
        raise ValueError(f"{where}: path {shown(template)} is refused; expected a plain path inside the data set")
    return path


def existing(root: Path, relative: str, where: str) -> Path:
    """The file at a relative path; raises FileNotFoundError, which names it and what misses it."""
    path = root / relative
    if not path.is_file():
        raise FileNotFoundError(f"{path}: is missing, {where} needs it; copy or download the data set again")
    return path


@contextmanager
def decoding(what: str, *errors: type[Exception]) -> Iterator[None]:
    """Convert what a library raises on damaged data into a ValueError that names `what`."""
    try:
        yield
    except errors as error:
        told = shown_text(str(error))
        raise ValueError(
            f"{what}: truncated or corrupt, cannot be read ({type(error).__name__}: {told}); copy or download it again"
        ) from error
