"""SIGTERM and Ctrl-C as a request to stop at the next point from which the work can resume."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StoppedError(Exception):
    """Work stopped early because a signal asked for it."""


class StopSignals:
    """Context manager that records SIGINT and SIGTERM instead of acting on them.

    A second signal changes nothing, because torchrun forwards to its processes what the terminal has already sent
    them. Outside the main thread signals cannot be caught and act as usual. A signal that was ignored stays ignored.

    Attributes:
        received: the first signal, or None.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._is_urgent = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self, *_: object) -> None:
        """Raise StoppedError if a signal was received; usable as an `OnTick` callback."""
        if self.received is not None:
            raise StoppedError(self.received.name)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Raise StoppedError where the work is when a signal arrives, for work that may hang and can be repeated."""
        self._is_urgent = True
        try:
            self.check()
            yield
        finally:
            self._is_urgent = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        is_first, self.received = self.received is None, self.received or signal.Signals(number)
        if self._is_urgent and is_first:
            raise StoppedError(self.received.name)
