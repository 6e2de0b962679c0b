"""Work that hangs is interrupted, and where that is not possible the process exits and says why."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from diffpolicy.system.patience import Patience
from diffpolicy.system.stopping import StoppedError, StopSignals

HANGING = """
import sys, time
from diffpolicy.system import patience
from diffpolicy.system.stopping import StopSignals
patience.GRACE_S = 0.1
stop = StopSignals()
with stop, patience.Patience("the env", float(sys.argv[1]), "limits.env_s", "step 8 is saved"), stop.at_once():
    while True:  # swallows what interrupts it, as C code does that is called again after a signal
        try:
            print("begun", flush=True)
            time.sleep(300)
        except BaseException:
            pass
"""


def test_python_code_that_hangs_is_interrupted_at_the_limit() -> None:
    message = r"^the env has not answered for 0\.05 s \(limits\.env_s\)$"
    with pytest.raises(TimeoutError, match=message), Patience("the env", 0.05, "limits.env_s"):
        time.sleep(300)


def test_work_that_goes_on_is_left_alone_and_leaves_no_trace() -> None:
    before = signal.getsignal(signal.SIGALRM), threading.active_count()
    with Patience("the env", 0.2, "limits.env_s") as patience:
        for _ in range(6):
            time.sleep(0.05)
            patience.beat()
    assert (signal.getsignal(signal.SIGALRM), threading.active_count()) == before


def test_a_signal_interrupts_urgent_work_once() -> None:
    stop = StopSignals()
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
    with stop, pytest.raises(StoppedError, match="SIGTERM"), stop.at_once():
        time.sleep(300)
    with stop:
        os.kill(os.getpid(), signal.SIGINT)  # the second one changes nothing
        assert stop.received == signal.SIGTERM


@pytest.mark.parametrize(("limit_s", "status"), [("300", 128 + signal.SIGTERM), ("0.1", 1)])
def test_what_cannot_be_interrupted_ends_the_process_with_a_message(limit_s: str, status: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HANGING, limit_s], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        if status != 1:
            process.terminate()
        said = process.communicate(timeout=300)[1]
    assert process.returncode == status
    first = "SIGTERM: the running code did not stop" if status != 1 else "error: the env has not answered for 0.1 s"
    assert said.startswith(first)
    assert said.endswith("; step 8 is saved\n")
