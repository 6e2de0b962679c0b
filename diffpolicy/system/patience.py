"""A time limit for work that may hang, such as the step of an env."""

import os
import select
import signal
import socket
import sys
import threading
import time
from types import FrameType, TracebackType
from typing import Any, Self

GRACE_S = 10.0  # how long work may take to end after it was interrupted
STOPPING = (signal.SIGINT, signal.SIGTERM)
ALARM = getattr(signal, "SIGALRM", None)  # not on Windows


class Patience:
    """Context manager for work in the main thread that must call `beat` at least every `limit_s`.

    If it does not, TimeoutError is raised in it. What hangs outside of Python code cannot be interrupted: GRACE_S after
    the limit, or after SIGTERM or Ctrl-C, the process then prints its last words and exits, with status 1 or 128 + the
    signal's number. Outside the main thread nothing is watched.

    Args:
        what: what may hang, and `setting`, which sets the limit; for the message.
        last_words: what the user should know besides if the process exits, such as how to resume.
    """

    def __init__(self, what: str, limit_s: float, setting: str, last_words: str = "") -> None:
        self._late = f"{what} has not answered for {limit_s:g} s ({setting})"
        self._limit_s, self._last_words = limit_s, last_words
        self._ended = threading.Event()
        self._watcher: threading.Thread | None = None
        self.beat()

    def beat(self, *_: object) -> None:
        """Say that the work goes on; usable as an `OnTick` callback."""
        self._last = time.monotonic()

    def __enter__(self) -> Self:
        self.beat()
        if threading.current_thread() is threading.main_thread():
            self._reading, self._writing = socket.socketpair()
            self._writing.setblocking(False)
            # The C-level handler writes a signal's number there, even while no Python code runs.
            self._before = signal.set_wakeup_fd(self._writing.fileno(), warn_on_full_buffer=False)
            self._handler: Any = signal.signal(ALARM, self._interrupt) if ALARM else None
            self._watcher = threading.Thread(target=self._watch, name="patience", daemon=True)
            self._watcher.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        if self._watcher is None:
            return
        self._ended.set()
        signal.set_wakeup_fd(self._before)
        self._writing.close()
        self._watcher.join()
        self._reading.close()
        if ALARM:
            signal.signal(ALARM, self._handler)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if not self._ended.is_set():
            raise TimeoutError(self._late)

    def _watch(self) -> None:
        while (left := self._last + self._limit_s - time.monotonic()) > 0:
            if not select.select([self._reading], [], [], left)[0]:
                continue
            numbers = self._reading.recv(64)
            if not numbers:
                return  # closed: the work has ended
            for number in STOPPING:
                if number in numbers:
                    self._exit(f"{number.name}: the running code did not stop", 128 + number)
                    return
        main = threading.main_thread().ident
        if ALARM and main is not None:
            signal.pthread_kill(main, ALARM)
        self._exit(f"error: {self._late}", 1)

    def _exit(self, message: str, status: int) -> None:
        if not self._ended.wait(GRACE_S):
            print("; ".join(filter(None, [message, self._last_words])), file=sys.stderr, flush=True)
            os._exit(status)
