"""A conversion that is killed, as by `kill -9`, leaves nothing at its output, and a rerun makes what it would have."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from diffpolicy.formats.convert import convert
from diffpolicy.formats.table import WriteSettings, open_recording

PROGRAM = Path(__file__).with_name("killed_conversion.py")
KILLED_AT = (1, 2, 4, 7, 11, 3)  # reads of the source; a rerun to zarr begins with what is still missing

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")


@pytest.fixture(scope="module")
def source(ours: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of LeRobot with three episodes, of 7, 1 and 40 steps."""
    folder = tmp_path_factory.mktemp("source") / "lerobot"
    convert(open_recording(str(ours), "zarr"), folder, "lerobot", WriteSettings(fps=10))
    return folder


def chunks(folder: Path) -> dict[str, int]:
    """The chunks that an unfinished conversion has, with the time at which each was written."""
    found = (path for path in folder.glob(".out.converting/data/**/c/**/*") if path.is_file())
    return {str(path): path.stat().st_mtime_ns for path in found if not path.name.endswith(".partial")}


@pytest.mark.parametrize("to", ["zarr", "lerobot", "robomimic"])
def test_nothing_half_is_left_and_a_rerun_makes_the_whole(to: str, source: Path, tmp_path: Path) -> None:
    output, before = tmp_path / "out", dict[str, int]()
    command = [sys.executable, str(PROGRAM), str(source), str(output)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        for reads in KILLED_AT:
            print(to, reads, file=program.stdin, flush=True)
            assert program.stdout.readline() == "killed\n"
            assert not output.exists()
            now = chunks(tmp_path)
            assert before.items() <= now.items(), "a chunk that was there is written again"
            before = now
        print(to, 0, file=program.stdin, flush=True)
        assert program.stdout.readline() == "done\n"
    assert (len(before) > 4) == (to == "zarr"), "only a conversion to zarr goes on where it was"
    found, expected = open_recording(str(output), to), open_recording(str(source), "lerobot")
    assert found.episode_ends.tolist() == expected.episode_ends.tolist()
    assert set(found.keys) >= {"action"}
    for key in expected.keys if to == "zarr" else ("action",):
        np.testing.assert_array_equal(found[key], expected[key])
    if to == "zarr":
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
