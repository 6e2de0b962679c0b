"""A lock is held by one process at a time, names its holder, and does not outlive it."""

import errno
import os
import time
from pathlib import Path

import pytest
from walk import CONTEXT, PATIENCE_S, wait_for

from diffpolicy.system import lock as module
from diffpolicy.system.lock import FileLock


def hold(path: Path) -> None:
    held = FileLock(path, str(path.parent)).acquire()
    (path.parent / "held").touch()
    time.sleep(PATIENCE_S)
    held.release()


def test_a_held_lock_is_refused_naming_its_holder_until_that_is_killed(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    process = CONTEXT.Process(target=hold, args=(path,))
    process.start()
    wait_for((tmp_path / "held").exists, process.is_alive)
    with pytest.raises(BlockingIOError, match=rf"{tmp_path} is in use by process {process.pid} on .*, started 2"):
        FileLock(path, str(tmp_path)).acquire()
    process.kill()
    process.join()
    with FileLock(path, str(tmp_path)):
        assert path.exists()
    assert not path.exists()


def test_two_locks_of_one_process_exclude_each_other(tmp_path: Path) -> None:
    with FileLock(tmp_path / ".lock", "here"), pytest.raises(BlockingIOError, match=f"process {os.getpid()} "):
        FileLock(tmp_path / ".lock", "here").acquire()
    FileLock(tmp_path / ".lock", "here").acquire().release()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    held = FileLock(tmp_path / ".lock", "here").acquire()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, b"x")
        time.sleep(PATIENCE_S)
        os._exit(0)
    os.read(reading, 1)
    del held  # closes the file, as the kernel does when this process is killed
    FileLock(tmp_path / ".lock", "here").acquire().release()
    os.kill(child, 9)
    os.waitpid(child, 0)


def test_without_flock_the_file_itself_is_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(module.fcntl, "flock", unsupported)
    path = tmp_path / ".lock"
    with FileLock(path, "here"), pytest.raises(BlockingIOError, match=rf"has ended, remove {path}$"):
        FileLock(path, "here").acquire()
    FileLock(path, "here").acquire()  # and is killed
    with pytest.raises(BlockingIOError):
        FileLock(path, "here").acquire()
    path.unlink()
    FileLock(path, "here").acquire().release()
