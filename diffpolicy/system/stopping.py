"""SIGTERM and Ctrl-C as a request: the work ends where it can be taken up again."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StoppedError(Exception):
    """Work was left because a signal asked for it."""


class StopSignals:
    """While entered, SIGINT and SIGTERM are noted and do nothing else.

    A second one changes nothing: torchrun hands on to its processes what a terminal has sent them already. Outside the
    main thread signals cannot be caught and act as before; one that is ignored stays so.

    Attributes:
        received: the first signal, or None.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
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
        """An `OnTick`: raise StoppedError if a signal has come."""
        if self.received is not None:
            raise StoppedError(self.received.name)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or signal.Signals(number)
