"""Zip files, written and unpacked whole or not at all."""

from __future__ import annotations

import os
import uuid
import zipfile
from pathlib import Path


def write_zip(folder: Path, target: Path) -> None:
    """Pack the files of `folder` into `target`: equal contents give equal bytes; replaces `target` when complete."""
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.partial")
    try:
        with open(temporary, "wb") as file:
            with zipfile.ZipFile(file, "w") as archive:
                for path in sorted(p for p in folder.rglob("*") if p.is_file()):
                    # A fixed date: the same data make the same file. Chunks are compressed already.
                    entry = zipfile.ZipInfo(path.relative_to(folder).as_posix(), (1980, 1, 1, 0, 0, 0))
                    archive.writestr(
                        entry, path.read_bytes(), zipfile.ZIP_DEFLATED if path.suffix == ".json" else zipfile.ZIP_STORED
                    )
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
