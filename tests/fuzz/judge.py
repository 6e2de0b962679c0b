"""Runs one case and says what came of it: a clean error, a sound load, or a fault."""

import resource
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from diffpolicy.commands.command import USER_ERRORS

MOST_BYTES = 2**30
MOST_SECONDS = 10.0
FAULTS = ("traceback", "signal", "silent", "over budget")
HYDRA = (HydraException, OmegaConfBaseException)  # hydra prints these itself, on several lines


class SilentError(Exception):
    """Something was loaded that should have been refused."""


@dataclass(frozen=True)
class Verdict:
    """What came of a case: refused, loaded or one of FAULTS, with what was done and said."""

    kind: str
    what: str
    said: str
    seconds: float = 0.0
    megabytes: float = 0.0


def judged(what: str, load: Callable[[], None]) -> Verdict:
    """Call `load`, which raises SilentError if it loads what should have been refused."""
    _forget_peak()
    before, start = _resident_bytes("VmRSS"), time.perf_counter()
    kind, said = "loaded", ""
    try:
        load()
    except SilentError as error:
        kind, said = "silent", str(error)
    except (*USER_ERRORS, *HYDRA) as error:
        said = f"{type(error).__name__}: {error}"
        is_clean = isinstance(error, HYDRA) or ("\n" not in str(error).strip() and 10 <= len(str(error)) < 2000)
        kind = "refused" if is_clean else "traceback"
    except BaseException as error:
        kind, said = "traceback", "".join(traceback.format_exception(error)[-6:])
    seconds, used = time.perf_counter() - start, _resident_bytes("VmHWM") - before
    if kind in ("loaded", "refused") and (seconds > MOST_SECONDS or used > MOST_BYTES):
        kind, said = "over budget", f"{seconds:.1f} s, {used / 1e6:.0f} MB; {said}"
    return Verdict(kind, what, said, seconds, used / 1e6)


def protect_machine(most_bytes: int = 6 * 2**30) -> None:
    """Limit this process's memory, so that a case that asks for much more fails alone."""
    resource.setrlimit(resource.RLIMIT_AS, (_resident_bytes("VmSize") + most_bytes, resource.RLIM_INFINITY))


def _forget_peak() -> None:
    path = Path("/proc/self/clear_refs")
    if path.exists():
        path.write_text("5")


def _resident_bytes(name: str) -> int:
    path = Path("/proc/self/status")
    lines = path.read_text().splitlines() if path.exists() else []  # elsewhere memory is not measured
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), 0)
