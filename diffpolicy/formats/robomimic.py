"""Reading a robomimic HDF5 file: data/demo_i/{actions, obs/KEY, states, rewards, dones}."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import h5py
import numpy as np
from tqdm import tqdm

from diffpolicy.formats import hdf5
from diffpolicy.formats.recording import Recording
from diffpolicy.system.plain import parsed
from diffpolicy.system.schema import Range, read

OURS = "diffpolicy"  # the attribute of `data` that tells what the arrays were called before
NEXT = "next_obs/"  # the observations one step later: left out, they are there already


def open_robomimic(location: str | os.PathLike[str]) -> Recording:
    """Open a file. Arrays keep their names, such as "actions" and "obs/agentview_image".

    Raises:
        FileNotFoundError: there is no file.
        ValueError: it is damaged, no robomimic file, or its episodes do not fit together.
    """
    path = Path(os.path.abspath(location))
    with hdf5.open_file(path) as file:
        data = hdf5.group(file, "data", str(path))
        names = sorted(
            (name for name in hdf5.names(data) if name.startswith("demo_")), key=lambda name: _number(name, path)
        )
        if not names:
            raise ValueError(f"{path}: data holds no demo_0, demo_1, ...; found {hdf5.names(data)[:5]}")
        ours = _ours(data, path)
        before = ours.get("arrays", {})
        episodes = []
        for name in names:
            demo = hdf5.group(data, name, f"{path}: data")
            found = {key: each for key, each in hdf5.arrays(demo, str(path)).items() if not key.startswith(NEXT)}
            if ours:
                found = {key: each for key, each in found.items() if key in before}
            if "actions" not in found and not ours:
                raise ValueError(f"{path}: data/{name} holds no 'actions'; found {sorted(found)[:10]}")
            length = _length(demo, name, found, path)
            episodes.append((f"data/{name}", found, length))
        specs, left_out = hdf5.check_episodes(episodes, {}, str(path))
        masks = _masks(file, path)
        attributes = ours.get("episodes") or [
            {"demo": name, "masks": [mask for mask, members in masks.items() if name in members]} for name in names
        ]
        about = ours.get("about") or {"format": "robomimic", **_env(data, path)}
        if len(attributes) != len(names):
            raise ValueError(f"{path}: attribute {OURS!r} describes {len(attributes)} episodes, expected {len(names)}")
    paths = [{before.get(key, key): f"{name}/{key}" for key in specs} for name, _, _ in episodes]
    renamed = {before.get(key, key): row for key, row in specs.items()}
    lengths = [length for _, _, length in episodes]
    return Recording(str(path), hdf5.Hdf5Reader(path, paths), renamed, lengths, attributes, about, left_out)


def _number(name: str, path: Path) -> int:
    number = name.removeprefix("demo_")
    if not number.isdecimal() or len(number) > 12:
        raise ValueError(f"{path}: data holds {name!r}, expected demo_0, demo_1, ...")
    return int(number)


def _length(demo: h5py.Group, name: str, found: dict[str, h5py.Dataset], path: Path) -> int:
    """The number of steps, which the attribute num_samples must confirm."""
    if not found:
        raise ValueError(f"{path}: data/{name} holds no arrays")
    length = len(next(iter(found.values())))
    claimed = int(demo.attrs["num_samples"]) if "num_samples" in demo.attrs else length  # type: ignore[arg-type]
    if claimed != length or length < 1:
        key = next(iter(found))
        raise ValueError(f"{path}: data/{name}/{key} has {length} rows, but num_samples of data/{name} is {claimed}")
    return length


def _ours(data: h5py.Group, path: Path) -> dict[str, Any]:
    """What this library wrote: {"version", "arrays": {path in demo_i: array}, "episodes": [...], "about"}."""
    told = hdf5.text(data.attrs, OURS)
    if told is None:
        return {}
    where = f"{path}: attribute {OURS!r} of data"
    found = read(dict[str, Any], parsed(told.encode(), where), where)
    read(Annotated[int, Range(1, 1)], found.get("version"), f"{where}: version")
    read(dict[str, str], found.get("arrays"), f"{where}: arrays")
    read(list[dict[str, Any]], found.get("episodes", []), f"{where}: episodes")
    return found


def _env(data: h5py.Group, path: Path) -> dict[str, Any]:
    told = hdf5.text(data.attrs, "env_args")
    if told is None:
        return {}
    args = parsed(told.encode(), f"{path}: attribute 'env_args' of data")
    rate = args.get("env_kwargs", {}).get("control_freq") if isinstance(args, dict) else None
    if isinstance(rate, int | float) and not isinstance(rate, bool) and rate > 0:
        return {"env_args": args, "fps": float(rate)}
    return {"env_args": args}


def _masks(file: h5py.File, path: Path) -> dict[str, set[str]]:
    """Name of a part, such as "train" -> the demonstrations that belong to it."""
    if "mask" not in file:
        return {}
    found = {}
    for name, array in hdf5.arrays(hdf5.group(file, "mask", str(path)), str(path)).items():
        if array.dtype.kind == "S" and array.ndim == 1:
            hdf5.check_size(array, f"{path}: mask/{name}")
            found[name] = {value.decode("utf-8", "replace") for value in np.asarray(array[:]).tolist()}
    return found


def write_robomimic(source: Recording, keys: list[str], output: Path, env_name: str) -> None:
    """Write the file `output`, whose folder exists; observations become obs/KEY, and next_obs is left out.

    robomimic trains from rewards and dones, too: where there are none, it writes zeros, and a 1 in the last step.
    """
    names = {key: _robomimic_name(key) for key in keys}
    if len(set(names.values())) < len(names):
        raise ValueError(
            f"two arrays would get the same name in robomimic: {names}; leave one out with leave_out=[NAME]"
        )
    ends = source.episode_ends
    with h5py.File(output, "w") as file:
        data = file.create_group("data")
        data.attrs["total"] = source.n_steps
        env = source.about.get("env_args") or {"env_name": env_name, "type": 2, "env_kwargs": {}}  # 2: gym
        data.attrs["env_args"] = json.dumps(env)
        told = {"version": 1, "arrays": {name: key for key, name in names.items()}, "about": source.about}
        data.attrs.create(OURS, json.dumps({**told, "episodes": source.episode_attributes}))
        for episode, end in enumerate(tqdm(ends.tolist(), desc=source.location, unit="episode")):
            start = int(ends[episode - 1]) if episode else 0
            demo = data.create_group(f"demo_{episode}")
            demo.attrs["num_samples"] = end - start
            for key, name in names.items():
                _write(demo, name, source, key, start, end)
            if "rewards" not in names.values():
                demo["rewards"] = np.zeros(end - start)
            if "dones" not in names.values():
                demo["dones"] = (np.arange(start, end) == end - 1).astype(np.int64)
        for mask in sorted({mask for each in source.episode_attributes for mask in each.get("masks", [])}):
            inside = [f"demo_{i}" for i, each in enumerate(source.episode_attributes) if mask in each.get("masks", [])]
            file[f"mask/{mask}"] = np.array(inside, dtype="S")


def _write(demo: h5py.Group, name: str, source: Recording, key: str, start: int, end: int) -> None:
    shape, dtype = source.specs[key]
    rows = max(1, min(end - start, 2**20 // max(1, int(np.prod(shape)) * np.dtype(dtype).itemsize)))
    packed = "gzip" if len(shape) == 3 else None
    array = demo.create_dataset(
        name, (end - start, *shape), dtype, chunks=(rows, *shape), compression=packed, fletcher32=True
    )
    for first in range(start, end, rows):
        last = min(first + rows, end)
        array[first - start : last - start] = source.rows(key, first, last)


def _robomimic_name(key: str) -> str:
    known = {"action": "actions", "reward": "rewards", "done": "dones", "next.reward": "rewards", "next.done": "dones"}
    plain = key.removeprefix("observation.images.").removeprefix("observation.")
    if key in known:
        return known[key]
    return key if key in ("actions", "rewards", "dones", "states") or key.startswith("obs/") else f"obs/{plain}"
