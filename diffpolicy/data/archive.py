"""Packing and unpacking of zip files: writing is atomic, and unpacking refuses unsafe archives."""

from __future__ import annotations

import os
import stat
import uuid
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from diffpolicy.system.files import sync_folder
from diffpolicy.system.plain import shown_text

FORMATS = {  # first bytes -> what the file is
    b"\x89HDF\r\n\x1a\n": "an HDF5 file",
    b"PAR1": "a Parquet file",
    b"\x1f\x8b": "a gzip archive",
    b"\x93NUMPY": "a numpy array",
}


def other_format(path: Path) -> str | None:
    """The format of a file that is not a zip; None for one that is named .zip and must be damaged."""
    with open(path, "rb") as file:
        start = file.read(16)
    known = next((name for first, name in FORMATS.items() if start.startswith(first)), None)
    return known or (None if path.suffix == ".zip" else "neither a zip nor a directory")


def write_zip(folder: Path, target: Path) -> None:
    """Pack the files of `folder` into `target`, which is replaced only once the new zip is complete.

    Equal contents give equal bytes.
    """
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.partial")
    try:
        with open(temporary, "wb") as file:
            with zipfile.ZipFile(file, "w") as archive:
                for path in sorted(p for p in folder.rglob("*") if p.is_file()):
                    # The fixed date makes the bytes reproducible. Chunks are compressed already.
                    entry = zipfile.ZipInfo(path.relative_to(folder).as_posix(), (1980, 1, 1, 0, 0, 0))
                    archive.writestr(
                        entry, path.read_bytes(), zipfile.ZIP_DEFLATED if path.suffix == ".json" else zipfile.ZIP_STORED
                    )
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
        sync_folder(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def unpack_zip(source: Path, folder: Path, label: str, limit_bytes: int = 4 * 2**30) -> None:
    """Unpack into the new `folder`; `label` names the zip in error messages.

    Raises:
        ValueError: the zip is truncated or corrupt (each member's checksum is verified), a member leads out of the
            folder or is a link, or the zip unpacks to more than `limit_bytes`.
    """
    try:
        with zipfile.ZipFile(source) as archive:
            _check_members(archive, label, limit_bytes)
            archive.extractall(folder)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(
            f"{label}: not a whole zip, truncated or corrupt ({shown_text(str(error))}); download it again"
        ) from error


def _check_members(archive: zipfile.ZipFile, label: str, limit_bytes: int) -> None:
    for entry in archive.infolist():
        path = PurePosixPath(entry.filename.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or ":" in entry.filename:
            raise ValueError(f"{label}: member {entry.filename!r} leads out of the folder, refused")
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise ValueError(f"{label}: member {entry.filename!r} is a link, refused")
    size = sum(entry.file_size for entry in archive.infolist())
    if size > limit_bytes:
        raise ValueError(f"{label}: unpacks to {size} bytes, expected at most {limit_bytes}")
