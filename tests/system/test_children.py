"""Children end with their parent, however it ends, and their failure is the parent's error."""

import os
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from walk import CONTEXT, PATIENCE_S, wait_for

from diffpolicy.benchmarks.child import Child
from diffpolicy.system.pool import Pool


def is_running(pid: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")


def in_a_pool(told: Path) -> None:
    pool = Pool(1, "sleeps", PATIENCE_S, "limit_s")
    tell(told, pool.result(pool.submit(os.getpid)))
    pool.result(pool.submit(time.sleep, PATIENCE_S))


def as_contestant(told: Path) -> None:
    program = told.with_name("program.py")
    program.write_text("import os, time\nprint('{\"pid\": %d}' % os.getpid(), flush=True)\ntime.sleep(300)\n")
    child = Child(sys.executable, program, ["contestant"])
    tell(told, child.ask({})["pid"])
    time.sleep(PATIENCE_S)


def tell(told: Path, pid: int) -> None:
    told.with_suffix(".partial").write_text(str(pid))
    told.with_suffix(".partial").rename(told)


@pytest.mark.parametrize("begin", [in_a_pool, as_contestant])
def test_a_child_at_work_ends_with_its_killed_parent(tmp_path: Path, begin) -> None:
    parent = CONTEXT.Process(target=begin, args=(tmp_path / "pid",))
    parent.start()
    wait_for((tmp_path / "pid").exists, parent.is_alive)
    child = int((tmp_path / "pid").read_text())
    assert is_running(child)
    parent.kill()
    parent.join()
    wait_for(lambda: not is_running(child), lambda: True)


@pytest.mark.parametrize(
    ("task", "argument", "limit_s", "message"),
    [
        (os._exit, 1, PATIENCE_S, r"a process that sleeps died \("),
        (time.sleep, PATIENCE_S, 0.2, r"that sleeps has not answered for 0\.2 s \(limits\.naps_s\)"),
    ],
)
def test_a_worker_that_dies_or_hangs_is_an_error(
    monkeypatch: pytest.MonkeyPatch, task, argument: float, limit_s: float, message: str
) -> None:
    monkeypatch.setattr("diffpolicy.system.pool.CLOSE_S", 0.1)
    with closing(Pool(1, "sleeps", limit_s, "limits.naps_s")) as pool, pytest.raises(ChildProcessError, match=message):
        pool.result(pool.submit(task, argument))
