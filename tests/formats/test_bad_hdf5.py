"""HDF5 files that are damaged, or made to read other files, run filters or fill the memory, are refused by name."""

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from diffpolicy.formats import convert, open_recording


def edit(function: Callable[[h5py.File, Path], object]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            function(file, path.parent)

    return damage


def replace(name: str, make: Callable[[h5py.File, Path], object]) -> Callable[[Path], None]:
    def change(file: h5py.File, folder: Path) -> None:
        del file[name]
        file[name] = make(file, folder)

    return edit(change)


def virtual(file: h5py.File, folder: Path) -> None:
    layout = h5py.VirtualLayout((5, 2), "f4")
    layout[:] = h5py.VirtualSource(str(folder / "secret.hdf5"), "x", (5, 2))
    del file["data/demo_0/actions"]
    file.create_virtual_dataset("data/demo_0/actions", layout)


def external(file: h5py.File, folder: Path) -> None:
    del file["data/demo_0/actions"]
    file.create_dataset("data/demo_0/actions", (5, 2), "f8", external=[(str(folder / "secret"), 0, 80)])


def objects(file: h5py.File, _: Path) -> None:
    del file["data/demo_0/actions"]
    file.create_dataset("data/demo_0/actions", data=np.array(["a"] * 5, object), dtype=h5py.string_dtype())


def zeros(file: h5py.File, _: Path) -> None:
    del file["data/demo_0/actions"]
    file.create_dataset("data/demo_0/actions", (5, 10**9), "f8", chunks=(1, 10**6))


def large_chunk(file: h5py.File, _: Path) -> None:
    del file["data/demo_0/actions"]
    file.create_dataset("data/demo_0/actions", (5, 2), "f8", chunks=(2**27, 1), maxshape=(None, 2))


def deep(file: h5py.File, _: Path) -> None:
    file["data/demo_0/" + "a/" * 20 + "x"] = np.zeros(5)


def plug_in(file: h5py.File, _: Path) -> None:
    """A filter that HDF5 would load from a shared library."""
    del file["data/demo_0/actions"]
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk((5, 2))
    plist.set_filter(305, h5py.h5z.FLAG_OPTIONAL, ())
    space = h5py.h5s.create_simple((5, 2))
    h5py.h5d.create(file["data/demo_0"].id, b"actions", h5py.h5t.IEEE_F64LE, space, plist)


def loop(file: h5py.File, _: Path) -> None:
    file["data/demo_0/obs/again"] = file["data/demo_0"]


ROBOMIMIC: dict[str, tuple[Callable[[Path], object], str]] = {
    "no data": (edit(lambda file, _: file.move("data", "other")), r"holds no 'data', expected one; found "),
    "no demonstrations": (
        edit(lambda file, _: [file["data"].pop(name) for name in list(file["data"])]),
        r"data holds no demo_0",
    ),
    "no actions": (edit(lambda file, _: file.pop("data/demo_1/actions")), r"data/demo_1 holds no 'actions'"),
    "missing in one": (
        edit(lambda file, _: file.pop("data/demo_1/obs/eef_pos")),
        r"data/demo_1 has no array 'obs/eef_pos', other episodes have it",
    ),
    "length": (
        replace("data/demo_1/obs/eef_pos", lambda *_: np.zeros((2, 3))),
        r"data/demo_1/obs/eef_pos: has 2 rows, expected 3",
    ),
    "num_samples": (
        edit(lambda file, _: file["data/demo_0"].attrs.__setitem__("num_samples", 6)),
        r"data/demo_0/actions has 5 rows, but num_samples of data/demo_0 is 6",
    ),
    "shape": (
        replace("data/demo_1/obs/eef_pos", lambda *_: np.zeros((3, 4))),
        r"data/demo_1/obs/eef_pos: rows are float64 of shape \(4,\), in other episodes",
    ),
    "name": (edit(lambda file, _: file.move("data/demo_1", "data/demo_x")), r"data holds 'demo_x', expected demo_0"),
    "not a number": (
        edit(lambda file, _: file["data/demo_1/rewards"].__setitem__(1, np.nan)),
        r"array 'rewards' holds NaN or inf in episode 1 at step 1",
    ),
    "truncated": (
        lambda path: path.write_bytes(path.read_bytes()[:20_000]),
        r"robomimic.hdf5: .*truncated or corrupt",
    ),
    "no HDF5": (lambda path: path.write_bytes(b"text"), r"robomimic.hdf5: truncated or corrupt"),
    "external link": (
        replace("data/demo_0/actions", lambda *_: h5py.ExternalLink("secret.hdf5", "/x")),
        r"'actions' is a ExternalLink, which is refused",
    ),
    "soft link": (
        replace("data/demo_0/actions", lambda *_: h5py.SoftLink("/data/demo_0/states")),
        r"'actions' is a SoftLink, which is refused",
    ),
    "virtual": (edit(virtual), r"data/demo_0/actions: the numbers are in other files, which is refused"),
    "external storage": (edit(external), r"data/demo_0/actions: the numbers are in other files, which is refused"),
    "objects": (edit(objects), r"data/demo_0/actions: dtype is object, expected numbers"),
    "zeros": (edit(zeros), r"data/demo_0/actions: needs 40000000000 bytes in memory, but only 0 bytes are stored"),
    "large chunk": (edit(large_chunk), r"data/demo_0/actions: a chunk: needs 1073741824 bytes in memory"),
    "plug-in": (edit(plug_in), r"data/demo_0/actions: it is stored with filters \[305\], expected gzip"),
    "deep": (edit(deep), r"groups are nested more than 8 times"),
    "loop": (edit(loop), r"groups are nested more than 8 times"),
}


@pytest.mark.parametrize("what", ROBOMIMIC)
def test_a_damaged_or_hostile_robomimic_file_is_refused_by_name(what: str, fixture_copy, tmp_path: Path):
    damage, message = ROBOMIMIC[what]
    path = fixture_copy("robomimic.hdf5")
    with h5py.File(path.with_name("secret.hdf5"), "w") as secret:
        secret["x"] = np.ones((5, 2))
    path.with_name("secret").write_bytes(bytes(80))
    damage(path)
    with pytest.raises(ValueError, match=message):
        convert(open_recording(str(path), "robomimic"), tmp_path / "out.zarr", "zarr")
    assert not (tmp_path / "out.zarr").exists()


MINARI: dict[str, tuple[Callable[[Path], object], str]] = {
    "one observation too few": (
        replace("episode_1/observations/state", lambda *_: np.zeros((3, 3), "f4")),
        r"episode_1/observations/state: has 3 rows, expected 4",
    ),
    "total_steps": (
        edit(lambda file, _: file["episode_0"].attrs.__setitem__("total_steps", 4)),
        r"episode_0/actions has 5 rows, but total_steps is 4",
    ),
    "an episode less": (edit(lambda file, _: file.pop("episode_1")), r"holds 1 episodes, but metadata.json says 2"),
    "Arrow": (
        lambda path: path.with_name("metadata.json").write_text('{"data_format": "arrow"}'),
        r"data_format is 'arrow', expected hdf5",
    ),
    "no episodes": (edit(lambda file, _: [file.pop(name) for name in list(file)]), r"holds no episode_0"),
}


@pytest.mark.parametrize("what", MINARI)
def test_a_damaged_minari_data_set_is_refused_by_name(what: str, fixture_copy, tmp_path: Path):
    damage, message = MINARI[what]
    root = fixture_copy("minari")
    damage(root / "data/main_data.hdf5")
    with pytest.raises(ValueError, match=message):
        convert(open_recording(str(root), "minari"), tmp_path / "out.zarr", "zarr")
    assert not (tmp_path / "out.zarr").exists()
