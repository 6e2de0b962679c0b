"""A pickle that attacks its reader is refused or read as data: nothing runs, no file is opened, memory is bounded."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("resource")  # not on Windows

import hostile
from one_case import over

from diffpolicy.interop.inert import Name, Stub
from diffpolicy.interop.pickles import read_pickle
from diffpolicy.interop.torch_file import TorchFile

CRAFTED = hostile.crafted()
DATA = {"honest", "memo bomb of tuples", "memo with large indices", "a list within itself", "deep lists", "deep tuples"}
DATA |= {"deep stubs", "memo bomb of lists", *(name for name in CRAFTED if name.endswith(", to mutate"))}
DATA |= {"BINPERSID with a path", "storage missing", "storage of another type", "storage that lies"}  # seen by the file


def attacked(count: int) -> dict[str, Any]:
    """What a fresh interpreter saw while it read all attacks and `count` mutations of each class."""
    command = [sys.executable, str(Path(hostile.__file__)), f"count={count}", "seed=0"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def check(found: dict[str, Any], count: int) -> None:
    assert found["events"] == []
    assert set(found["classes"]) == {*hostile.CLASSES, "zips"}
    for name, told in found["classes"].items():
        assert told["cases"] > count, name
        assert told["peak_mb"] < 1024, name
    assert sum(told["read"] for told in found["classes"].values()) > 0


def test_20_mutations_of_each_class_of_attacks_run_nothing_and_open_nothing() -> None:
    check(attacked(20), 20)


@pytest.mark.slow
def test_10_000_mutations_of_each_class_of_attacks_run_nothing_open_nothing_and_end_soon() -> None:
    found = attacked(10_000)
    check(found, 10_000)
    assert max(told["slowest_s"] for told in found["classes"].values()) < 2.0  # of processor time; ten times measured


@over("name", hostile.HARMFUL)
def test_a_global_that_no_checkpoint_needs_is_refused_by_name_however_it_is_called(name: str) -> None:
    for data in hostile.calls(name).values():
        with pytest.raises(ValueError, match=rf"pickle is refused: it asks for '{name}', which no checkpoint needs"):
            read_pickle(data, "pickle")


@over("name", hostile.STUBS)
def test_any_other_global_is_an_inert_stub_however_it_is_called(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    for data in hostile.calls(name).values():
        found = read_pickle(data, "pickle")
        assert isinstance(found, Stub)
        assert found.made_by == Name(module, attribute)
        assert "touch /tmp/diffpolicy_was_here" in [found.state, *found.arguments, *(found.arguments or ((),))[0]]


@over("name", [name for name in CRAFTED if " " not in name or not name.split()[0].isupper() or "BINPERSID" in name])
def test_every_other_attack_is_refused_or_data(name: str) -> None:
    if name in DATA:
        read_pickle(CRAFTED[name], "pickle")
    else:
        with pytest.raises(ValueError, match=r"pickle (is refused|is damaged)"):
            read_pickle(CRAFTED[name], "pickle")


@over("name", ["BINPERSID with a path", "storage missing", "storage of another type", "storage that lies"])
def test_a_tensor_whose_storage_is_not_in_the_file_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "file.ckpt"
    path.write_bytes(hostile.packed(CRAFTED[name]))
    with TorchFile(path) as file, pytest.raises(ValueError, match=r"data/.* has .* bytes, expected"):
        file.tensor(file.content)


@over("name", [name for name in hostile.files() if name != "honest file"])
def test_a_zip_that_torch_would_not_write_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "file.ckpt"
    path.write_bytes(hostile.files()[name])
    with pytest.raises(ValueError, match=r"file.ckpt"):
        TorchFile(path)
