"""What is given its final name is on disk already: a power cut leaves the old version or the new one."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from diffpolicy.benchmarks.files import write_rows
from diffpolicy.data.replay_buffer import ReplayBuffer
from diffpolicy.system import checkpoint
from diffpolicy.system.files import write_text

SPECS = {"action": ((1,), "float32")}


def packed(folder: Path) -> None:
    buffer = ReplayBuffer.create(folder / "data.zarr", SPECS)
    buffer.append_episode({"action": np.zeros((3, 1), "float32")})
    buffer.pack(folder / "data.zarr.zip")


WRITERS: dict[str, Callable[[Path], object]] = {
    "text": lambda folder: write_text(folder / "results.json", "{}"),
    "rows of a benchmark": lambda folder: write_rows(folder, "speed", {}, [{"a": 1}]),
    "checkpoint": lambda folder: checkpoint.write(folder / "step_1", {}, {"model": {"a": torch.zeros(1)}}),
    "pointer": lambda folder: checkpoint.point(folder / "last", folder),
    "data set": lambda folder: ReplayBuffer.create(folder / "data.zarr", SPECS),
    "zip": packed,
}


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
def test_a_file_or_folder_is_forced_to_disk_before_it_is_named_and_its_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: Callable[[Path], object]
) -> None:
    synced: set[int] = set()
    renamed: list[Path] = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        synced.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def checked(rename: Callable[..., object]) -> Callable[[Path, Path], None]:
        def rename_synced(source: Path, target: Path) -> None:
            inside = [Path(source), *Path(source).rglob("*")] if Path(source).parent == tmp_path else []
            missing = [each for each in inside if not each.is_symlink() and each.stat().st_ino not in synced]
            assert missing == [], f"named {target} too early"
            synced.discard(tmp_path.stat().st_ino)
            rename(source, target)
            renamed.append(Path(target))

        return rename_synced

    monkeypatch.setattr(os, "fsync", note)
    for name in ("rename", "replace"):
        monkeypatch.setattr(os, name, checked(getattr(os, name)))
    writer(tmp_path)
    assert any(target.parent == tmp_path for target in renamed)
    assert tmp_path.stat().st_ino in synced


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "results.json", "old")

    def full(_: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_text(tmp_path / "results.json", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]
    assert (tmp_path / "results.json").read_text() == "old"
