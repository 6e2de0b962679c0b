"""Recognising what a folder or file is."""

from __future__ import annotations

import os
from pathlib import Path

from diffpolicy.data.archive import other_format

HDF5 = b"\x89HDF\r\n\x1a\n"
SIGNS = {  # a file in the folder -> format
    "meta/info.json": "lerobot",
    "zarr.json": "zarr",
    ".zgroup": "zarr",
    "data/main_data.hdf5": "minari",
    "main_data.hdf5": "minari",
}


def recognise(location: str | os.PathLike[str]) -> str:
    """The format of a data set: lerobot, robomimic, minari or zarr.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: it is none of them; the message says what was found.
    """
    path = Path(location)
    if "://" in str(location):
        return "zarr"
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such file or folder")
    if path.is_dir():
        found = next((name for sign, name in SIGNS.items() if (path / sign).is_file()), None)
        if found is None:
            inside = sorted(each.name for each in path.iterdir())[:8]
            raise ValueError(f"{path}: no data set that is known: found {inside}, expected one of {', '.join(SIGNS)}")
        return found
    with path.open("rb") as file:
        is_hdf5 = file.read(len(HDF5)) == HDF5
    if is_hdf5:
        return _hdf5(path)
    told = other_format(path)
    if path.suffix == ".zip" or told is None:
        return "zarr"
    raise ValueError(f"{path}: is {told}, expected a folder, an HDF5 file or a .zarr.zip")


def _hdf5(path: Path) -> str:
    from diffpolicy.formats.table import extra

    with extra("robomimic or minari"):
        from diffpolicy.formats.hdf5 import open_file
    with open_file(path) as file:
        names = list(file)
    if "data" in names:
        return "robomimic"
    if any(name.startswith("episode_") for name in names):
        return "minari"
    raise ValueError(f"{path}: holds neither data (robomimic) nor episode_0 (Minari); found {names[:8]}")
