"""Child processes that end with their parent, even if it is killed.

`python children.py PARENT PROGRAM ARGUMENTS` runs PROGRAM with ARGUMENTS until the process PARENT has ended. This file
needs nothing besides the standard library, so that any interpreter can run it.
"""

import multiprocessing
import os
import runpy
import signal
import sys
import threading
import time
from collections.abc import Callable

POLL_S = 0.5


def end_with_parent() -> None:
    """End this process, which multiprocessing started, as soon as its parent has ended; nobody waits for its work."""
    parent = multiprocessing.parent_process()
    if parent is None:
        raise RuntimeError("children: this process was not started by multiprocessing")
    _then(parent.join, lambda: os._exit(1))


def begin_worker() -> None:
    """Initialise a worker of a pool: it ends with its parent, and by its parent alone.

    It ignores signals: a terminal sends them to all processes, but the parent needs its workers until it has finished
    or saved.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    end_with_parent()


def stop_with(parent: int) -> None:
    """Ask this process to stop (SIGTERM) as soon as `parent` has ended, which must be the parent."""
    _then(lambda: _wait_for(parent), lambda: os.kill(os.getpid(), signal.SIGTERM))


def _wait_for(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL_S)


def _then(wait: Callable[[], object], end: Callable[[], object]) -> None:
    def watch() -> None:
        wait()
        end()

    threading.Thread(target=watch, name="end with parent", daemon=True).start()


def main() -> None:
    """Run a program until its parent ends."""
    parent, program = int(sys.argv[1]), sys.argv[2]
    _then(lambda: _wait_for(parent), lambda: os._exit(1))
    sys.argv = sys.argv[2:]
    sys.path[0] = os.path.dirname(os.path.abspath(program))  # as if it had been started directly
    runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    main()
