"""Reading a Minari data set in HDF5: episode_i/{observations, actions, rewards, terminations, truncations}."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import h5py

from diffpolicy.formats import hdf5
from diffpolicy.formats.recording import Recording
from diffpolicy.system.plain import parsed, read_bounded, shown
from diffpolicy.system.schema import read

FILE = "main_data.hdf5"
KEPT = ("actions", "observations", "rewards", "terminations", "truncations")
DESCRIBED = ("dataset_id", "algorithm_name", "author", "code_permalink", "minari_version", "env_spec", "description")


def open_minari(location: str | os.PathLike[str]) -> Recording:
    """Open a data set by its folder, by the folder data/ in there, or by main_data.hdf5.

    Arrays are called actions, observations or observations/KEY, rewards, terminations, truncations. The observation
    after the last action is left out, and so is `infos`.

    Raises:
        FileNotFoundError: there is no data set.
        ValueError: it is damaged, not in HDF5, or its episodes do not fit together.
    """
    path = find_file(Path(os.path.abspath(location)))
    about = _about(path.with_name("metadata.json"))
    with hdf5.open_file(path) as file:
        names = sorted(
            (name for name in hdf5.names(file) if name.startswith("episode_")), key=lambda name: _number(name, path)
        )
        if not names:
            raise ValueError(f"{path}: holds no episode_0, episode_1, ...; found {hdf5.names(file)[:5]}")
        episodes, attributes = [], []
        for name in names:
            group = hdf5.group(file, name, str(path))
            found = {key: each for key, each in hdf5.arrays(group, str(path)).items() if key.split("/")[0] in KEPT}
            if "actions" not in found:
                raise ValueError(f"{path}: {name} holds no array 'actions'; Dict and Tuple actions are not read")
            length = len(found["actions"])
            claimed = int(group.attrs.get("total_steps", length))  # type: ignore[arg-type]
            if claimed != length or length < 1:
                raise ValueError(f"{path}: {name}/actions has {length} rows, but total_steps is {claimed}")
            episodes.append((name, found, length))
            attributes.append(_attributes(group))
        extra = {key: 1 for _, found, _ in episodes for key in found if key.startswith("observations")}
        specs, left_out = hdf5.check_episodes(episodes, extra, str(path))
    total = about.get("total_episodes")
    if isinstance(total, int) and total != len(names):
        raise ValueError(f"{path}: holds {len(names)} episodes, but metadata.json says {total}")
    described = {"format": "minari", **{key: about[key] for key in DESCRIBED if key in about}}
    paths = [{key: f"{name}/{key}" for key in specs} for name in names]
    lengths = [length for _, _, length in episodes]
    return Recording(str(path), hdf5.Hdf5Reader(path, paths), specs, lengths, attributes, described, left_out)


def find_file(path: Path) -> Path:
    """The HDF5 file of a data set; raises FileNotFoundError."""
    for place in (path, path / FILE, path / "data" / FILE):
        if place.is_file():
            return place
    raise FileNotFoundError(f"{path}: holds no data/{FILE}; expected the folder of a Minari data set in HDF5")


def _about(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    found = read(dict[str, Any], parsed(read_bounded(path), str(path)), str(path))
    if found.get("data_format", "hdf5") != "hdf5":
        raise ValueError(f"{path}: data_format is {shown(found['data_format'])}, expected hdf5; Minari converts it")
    return found


def _number(name: str, path: Path) -> int:
    number = name.removeprefix("episode_")
    if not number.isdecimal() or len(number) > 12:
        raise ValueError(f"{path}: holds {name!r}, expected episode_0, episode_1, ...")
    return int(number)


def _attributes(group: h5py.Group) -> dict[str, Any]:
    found = {name: group.attrs.get(name) for name in ("id", "seed")}
    return {name: int(value) for name, value in found.items() if hasattr(value, "__index__")}  # type: ignore[arg-type]
