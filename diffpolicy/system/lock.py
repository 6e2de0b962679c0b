"""A lock that one process holds on a file, so that two runs never write to the same place."""

import json
import os
import socket
import time
import weakref
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from diffpolicy.system.plain import parsed, read_bounded

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


class FileLock:
    """Holds the file `path` locked from `acquire` to `release`; usable as a context manager.

    The kernel releases the lock when the process ends, however it ends, also on network file systems that have flock.
    Elsewhere the lock is the existence of the file, which a killed process leaves behind.

    Args:
        path: the lock file; its folder must exist. It names the holder, and `release` removes it.
        what: what is locked, for the error message.
    """

    def __init__(self, path: Path, what: str) -> None:
        self._path, self._what = path, what
        self._file: IO[str] | None = None
        this = weakref.ref(self)
        if hasattr(os, "register_at_fork"):  # a forked child shares the open file and would keep it locked
            os.register_at_fork(after_in_child=lambda: _close(this()))

    def acquire(self) -> Self:
        """Take the lock without waiting.

        Raises:
            BlockingIOError: another process, or another lock of this process, holds it; the message says which.
        """
        descriptor = self._locked()
        while not self._is_current(descriptor):  # its last holder has just removed it
            os.close(descriptor)
            descriptor = self._locked()
        self._file = os.fdopen(descriptor, "w", encoding="utf-8")  # closed, too, when this lock is garbage
        holder = {"host": socket.gethostname(), "pid": os.getpid(), "started": time.strftime("%Y-%m-%d %H:%M:%S")}
        self._file.truncate()
        self._file.write(json.dumps(holder))
        self._file.flush()
        return self

    def release(self) -> None:
        """Give the lock back; does nothing if it is not held."""
        if self._file is None:
            return
        if fcntl is None:
            _close(self)  # Windows removes no open file
            self._path.unlink(missing_ok=True)
        else:
            self._path.unlink(missing_ok=True)  # before it is unlocked: then it may be another holder's
            _close(self)

    def __enter__(self) -> Self:
        return self.acquire()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.release()

    def _locked(self) -> int:
        """Open and lock the file."""
        descriptor, is_new = self._open()
        try:
            has_locks = _flock(descriptor)
        except BlockingIOError:
            os.close(descriptor)
            raise BlockingIOError(self._in_use()) from None
        if not has_locks and not is_new:
            os.close(descriptor)
            raise BlockingIOError(f"{self._in_use()}. If that process has ended, remove {self._path}")
        return descriptor

    def _open(self) -> tuple[int, bool]:
        """The open lock file, and whether it is new."""
        while True:
            with suppress(FileExistsError):
                return os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644), True
            with suppress(FileNotFoundError):
                return os.open(self._path, os.O_RDWR), False

    def _is_current(self, descriptor: int) -> bool:
        with suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(descriptor), os.stat(self._path))
        return False

    def _in_use(self) -> str:
        found = {"host": "unknown", "pid": "unknown", "started": "unknown"}
        with suppress(OSError, ValueError, TypeError):
            found |= parsed(read_bounded(self._path), str(self._path))
        return (
            f"{self._what} is in use by process {found['pid']} on {found['host']}, started {found['started']}; wait "
            "until it has ended, or choose another folder"
        )


def _flock(descriptor: int) -> bool:
    """Lock the file; False where the system or the file system has no such locks. Raises BlockingIOError."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True


def _close(lock: FileLock | None) -> None:
    if lock is not None and lock._file is not None:
        lock._file.close()
        lock._file = None
