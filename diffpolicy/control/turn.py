"""A guard against two threads that use one controller at the same time, which would mix their episodes."""

import functools
import threading
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
Turn = threading.Lock


class Guarded(Protocol):
    """What has guarded methods; `turn` is a `Turn`."""

    turn: Any


Owner = TypeVar("Owner", bound=Guarded)


def one_thread_at_a_time(
    method: Callable[Concatenate[Owner, Arguments], Result],
) -> Callable[Concatenate[Owner, Arguments], Result]:
    """Raise RuntimeError if a guarded method of the same object is running already; nothing has changed then."""

    @functools.wraps(method)
    def guarded(self: Owner, *arguments: Arguments.args, **named: Arguments.kwargs) -> Result:
        if not self.turn.acquire(blocking=False):
            raise RuntimeError(
                f"controller: {method.__name__} was called while another thread is using the same controller; make one "
                "for each thread (they may share a policy), or take turns"
            )
        try:
            return method(self, *arguments, **named)
        finally:
            self.turn.release()

    return guarded
