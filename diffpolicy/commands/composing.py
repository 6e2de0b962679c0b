"""Errors of composing the settings: hydra prints a traceback for values that it does not expect; one line is enough."""

import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

RAISE = "HYDRA_FULL_ERROR"  # a user who sets it wants tracebacks
WHY = "a group takes the name of one of its choices, as in sampler=ddim, and env.id=... needs a task that has an env"


@contextlib.contextmanager
def composing(hints: Callable[[], list[str]]) -> Iterator[None]:
    """Call a function of `hydra.main` in this context; what hydra refuses ends the process with status 1.

    Args:
        hints: sentences on the settings of the command line that do not exist. They are printed in place of what hydra
            says, whose advice for a misspelled setting is to add it.
    """
    if RAISE in os.environ:
        yield
        return
    os.environ[RAISE] = "1"  # hydra then raises what it would print
    try:
        yield
    except HydraException as error:
        cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else ""
        for sentence in hints() or [" ".join(f"{error} {cause}".split())]:
            print(f"error: {sentence}", file=sys.stderr)
        sys.exit(1)
    except (TypeError, AssertionError, AttributeError) as error:
        if any(frame.name == "run_job" for frame in traceback.extract_tb(error.__traceback__)):
            raise  # of the command itself
        print(f"error: hydra cannot compose the settings from {sys.argv[1:]}: {WHY}", file=sys.stderr)
        sys.exit(1)
    finally:
        os.environ.pop(RAISE, None)
