"""Cases on data sets: files of a zarr store that were changed, in a folder or a zip, ours or of another writer."""

import functools
import json
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import walk
import zarr
from judge import SilentError
from mutations import WEIRD, changed_bytes, changed_text, changed_tree, paths

from diffpolicy.data.mark import NAME, write_mark
from diffpolicy.data.replay_buffer import ReplayBuffer

Case = tuple[str, Callable[[], None]]
CLAIMS = (10**6, 10**9, 2**31 - 1, 2**40, 2**62, 0, 1, 7)


def prepare(folder: Path) -> None:
    """Record FOLDER/walk.zarr with attributes, and the same as another writer would, in FOLDER/theirs.zarr."""
    buffer = ReplayBuffer.open(walk.record(folder / "walk.zarr"), mode="a")
    last = buffer.episode(9)
    buffer.append_episode(last, {"seed": 3, "note": "the last one"})
    root = zarr.open_group(folder / "theirs.zarr", mode="w", zarr_format=2)
    for key in buffer.keys:
        root.create_array(f"data/{key}", data=buffer[key], chunks=(161, *buffer[key].shape[1:]))
    root.create_array("meta/episode_ends", data=buffer.episode_ends)


def store_case(base: Path, folder: Path, random_: random.Random) -> Case:
    """A changed store of ours: it reads as before, or is refused."""
    path = folder / "walk.zarr"
    shutil.copytree(base / "walk.zarr", path)
    what = _change_file(path, random_)
    if random_.random() < 0.5:
        path = _zipped(path, folder)
        if random_.random() < 0.3:
            path.write_bytes(changed_bytes(path.read_bytes(), random_))
            what += ", zip bytes"
    expected = _content(base / "walk.zarr")
    return f"store {what}", functools.partial(_load_same, path, expected)


def remarked_case(base: Path, folder: Path, random_: random.Random) -> Case:
    """A store of ours whose metadata claim something else, with the checksum made right again."""
    path = folder / "walk.zarr"
    shutil.copytree(base / "walk.zarr", path)
    array = random_.choice(("data/action", "data/state", "meta/episode_ends"))
    what = _change_json(path / array / "zarr.json", random_)
    try:
        root = zarr.open_group(path, mode="r+")
        ends = np.asarray(zarr.open_group(base / "walk.zarr", mode="r")["meta/episode_ends"])
        write_mark(root, ["action", "state"], ends, _content(base / "walk.zarr")["attributes"])
    except Exception:  # zarr cannot open what was made of it; then nor can we
        what += ", mark as it was"
    return f"remarked {array} {what}", functools.partial(_load_sound, path)


def foreign_case(base: Path, folder: Path, random_: random.Random) -> Case:
    """A changed store of another writer, which has no checksums: what is read is sound."""
    path = folder / "theirs.zarr"
    shutil.copytree(base / "theirs.zarr", path)
    what = _change_file(path, random_)
    if random_.random() < 0.3:
        path = _zipped(path, folder)
    return f"foreign {what}", functools.partial(_load_sound, path)


def _content(path: Path) -> dict[str, Any]:
    buffer = ReplayBuffer.open(path)
    try:
        return {
            "keys": sorted(buffer.keys),
            "ends": buffer.episode_ends.tolist(),
            "specs": {key: (shape, str(dtype)) for key, (shape, dtype) in buffer.specs.items()},
            "values": {key: buffer[key].tobytes() for key in buffer.keys},
            "attributes": buffer.episode_attributes,
        }
    finally:
        buffer.close()


def _load_same(path: Path, expected: dict[str, Any]) -> None:
    found = _content(path)
    different = [key for key, value in expected.items() if found[key] != value]
    if different:
        raise SilentError(f"other {', '.join(different)} than were saved: {[found[key] for key in different]!s:.300}")


def _load_sound(path: Path) -> None:
    buffer = ReplayBuffer.open(path)
    try:
        ends = buffer.episode_ends
        if ends.dtype != np.int64 or (len(ends) and (ends[0] < 1 or (np.diff(ends) < 1).any())):
            raise SilentError(f"ends {ends}")
        for key in buffer.keys:
            values = buffer[key]
            if len(values) != buffer.n_steps or values.dtype.kind not in "buif" or not np.isfinite(values).all():
                raise SilentError(f"{key} is {values.dtype} {values.shape}")
        if len(buffer.episode_attributes) != len(ends):
            raise SilentError("attributes")
    finally:
        buffer.close()


def _change_file(path: Path, random_: random.Random) -> str:
    files = sorted(one for one in path.rglob("*") if one.is_file())
    metadata = [one for one in files if one.name.startswith((".z", "zarr.json"))]
    file = random_.choice(metadata if random_.random() < 0.6 else files)
    name = file.relative_to(path)
    kind = random_.randrange(8)
    if kind == 0:
        file.unlink()
        return f"without {name}"
    if kind == 1:
        other = random_.choice(files)
        file.write_bytes(other.read_bytes())
        return f"{name} is {other.relative_to(path)}"
    if file in metadata and kind < 6:
        return f"{name} {_change_json(file, random_)}"
    data = file.read_bytes()
    if file not in metadata and kind == 2:  # what the chunk says of its size
        claim = random_.choice(CLAIMS) % 2**32
        file.write_bytes(data[:4] + claim.to_bytes(4, "little") + data[8:])
        return f"{name} claims {claim}"
    file.write_bytes(changed_bytes(data, random_))
    return f"{name} bytes"


def _change_json(file: Path, random_: random.Random) -> str:
    text = file.read_text()
    if random_.random() < 0.2:
        file.write_bytes(changed_text(text, random_).encode("utf-8", "surrogatepass"))
        return "text"
    tree = json.loads(text)
    numbers = [one for one in paths(tree) if one[-2:-1] in (("shape",), ("chunks",), ("chunk_shape",))]
    if numbers and random_.random() < 0.3:
        place, claim = random_.choice(numbers), random_.choice(CLAIMS)
        parent: Any = functools.reduce(lambda inner, key: inner[key], place[:-1], tree)
        parent[place[-1]] = claim
        what = f"{'.'.join(map(str, place))} claims {claim}"
    elif NAME in tree.get("attributes", {}) and random_.random() < 0.3:
        tree["attributes"][NAME] = random_.choice(WEIRD)
        what = "another mark"
    elif not paths(tree):
        tree, what = random_.choice(WEIRD), "another root"
    else:
        tree, what = changed_tree(tree, random_, paths(tree))
    file.write_text(json.dumps(tree))
    return what


def _zipped(path: Path, folder: Path) -> Path:
    packed = folder / f"{path.name}.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        for file in sorted(path.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(path).as_posix())
    return packed
