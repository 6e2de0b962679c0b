"""The folder of a training run, which one process at a time may write to."""

from pathlib import Path

from diffpolicy.system.lock import FileLock
from diffpolicy.training.run_checkpoints import RunCheckpoints


class RunFolder:
    """Checks and locks the folder `path`; a run that is to be resumed is locked at once.

    Raises:
        ValueError: the folder holds a run that is not to be resumed, or no run that could be.
        BlockingIOError: another process trains there.
    """

    def __init__(self, path: Path, resume: bool, is_first: bool) -> None:
        self.path, self._resume, self._is_first = path, resume, is_first
        self.checkpoints = RunCheckpoints(path)
        self._lock: FileLock | None = None
        if is_first or resume:  # the others may have got another folder by default, which they do not use
            self.checkpoints.check(resume)
        if resume:
            self.claim()

    def claim(self) -> None:
        """Lock the folder in the first process, unless it is locked already, and remove what killed writers left.

        Raises:
            BlockingIOError: another process trains there.
            ValueError: it holds a run that did not exist when it was checked, or no whole checkpoint.
        """
        if self._lock is not None or not self._is_first:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.path / ".lock", str(self.path)).acquire()
        try:
            self.checkpoints.check(self._resume)
            self.checkpoints.begin()
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Let other processes have the folder."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None
