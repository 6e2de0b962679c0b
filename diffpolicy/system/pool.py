"""Worker processes whose death or silence is an error instead of a hang."""

import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Any

from diffpolicy.system.children import begin_worker

CLOSE_S = 5.0  # how long `close` waits for tasks that are being worked on


class Pool:
    """A pool of spawned processes that ignore signals and end with this process, however it ends.

    Args:
        workers: the number of processes; they start with the first task.
        what: what a process does, for error messages, such as "reads data".
        limit_s: how long a result may take, and `setting`, which sets it.
        prepare: called in every process first, with `arguments`.
    """

    def __init__(
        self,
        workers: int,
        what: str,
        limit_s: float,
        setting: str,
        prepare: Callable[..., object] | None = None,
        arguments: tuple[Any, ...] = (),
    ) -> None:
        self._what, self._limit_s, self._setting = what, limit_s, setting
        context = multiprocessing.get_context("spawn")  # locks, threads and remote clients do not survive a fork
        self._executor = ProcessPoolExecutor(workers, context, _begin, (prepare, arguments))

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Begin function(*arguments) in a process."""
        try:
            with _signals_held():
                return self._executor.submit(function, *arguments)
        except BrokenProcessPool as error:
            raise ChildProcessError(f"a process that {self._what} died ({error})") from error

    def result(self, future: Future[Any]) -> Any:
        """What the function returns, or raises.

        Raises:
            ChildProcessError: a process died or took longer than the limit; the pool is then of no more use.
        """
        try:
            return future.result(self._limit_s)
        except BrokenProcessPool as error:
            raise ChildProcessError(f"a process that {self._what} died ({error})") from error
        except TimeoutError as error:
            if future.done():  # the function raised it
                raise
            message = f"a process that {self._what} has not answered for {self._limit_s:g} s ({self._setting})"
            raise ChildProcessError(message) from error

    def close(self) -> None:
        """End the processes after the tasks that they are working on, or kill them if that takes long."""
        processes = list((self._executor._processes or {}).values())
        shutdown = threading.Thread(target=self._executor.shutdown, kwargs={"cancel_futures": True})
        shutdown.start()
        shutdown.join(CLOSE_S)
        if shutdown.is_alive():
            for process in processes:
                process.kill()
        shutdown.join()


def _begin(prepare: Callable[..., object] | None, arguments: tuple[Any, ...]) -> None:
    begin_worker()
    if prepare is not None:
        prepare(*arguments)


@contextmanager
def _signals_held() -> Iterator[None]:
    """Hold back signals in processes that start now, for good, and in this thread meanwhile."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # lets signals through when it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
