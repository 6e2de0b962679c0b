"""A command in a process of its own that is stopped at a time limit, with everything that it started."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

GRACE_S = 15.0  # between asking and killing: a training run saves in this time


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    Attributes:
        status: its exit status, negative after a signal.
        seconds: wall-clock time.
        is_over_limit: it was stopped because its time was up.
    """

    status: int
    seconds: float
    is_over_limit: bool

    @property
    def succeeded(self) -> bool:
        return self.status == 0 and not self.is_over_limit


def run_limited(command: Sequence[str], limit_s: float, log: Path, environment: Mapping[str, str]) -> Outcome:
    """Run `command` for at most `limit_s` seconds; its output goes to the file `log`.

    At the limit it gets SIGTERM and, if it does not end within GRACE_S seconds, SIGKILL, together with its children.
    """
    start = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,  # a process group, so that its children get the signal too
        )
        try:
            process.wait(limit_s)
            is_over_limit = False
        except subprocess.TimeoutExpired:
            is_over_limit = True
            _end(process, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_S)
        finally:
            _end(process, signal.SIGKILL)
            process.wait()
    return Outcome(process.returncode, time.monotonic() - start, is_over_limit)


def _end(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
