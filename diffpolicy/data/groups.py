"""Groups without consolidated metadata: a copy of the metadata of all arrays, which a writer leaves behind stale."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import zarr

from diffpolicy.system.files import write_text
from diffpolicy.system.plain import read_bounded


def open_group(store: Any, mode: Literal["r", "r+"] = "r", path: str = "") -> zarr.Group:
    """Open a group and ignore its consolidated metadata: each array has its own, which are never stale."""
    return zarr.open_group(store, mode=mode, path=path, use_consolidated=False)


def forget_consolidated(path: Path) -> None:
    """Remove the consolidated metadata of our directory `path`, which other readers would trust after an append."""
    for group in (path, path / "data", path / "meta"):
        content = json.loads(read_bounded(group / "zarr.json"))
        if content.pop("consolidated_metadata", None) is not None:
            write_text(group / "zarr.json", json.dumps(content, indent=2))
