"""Threads of the commands soon sleep while they wait, unless the user chose otherwise."""

import os
import subprocess
import sys

from one_case import over

PROGRAM = """
import os, sys
import diffpolicy
assert "torch" not in sys.modules
import diffpolicy.commands
assert "torch" not in sys.modules, "OpenMP reads its settings when torch is imported"
print(os.environ.get("OMP_WAIT_POLICY"), os.environ.get("GOMP_SPINCOUNT"))
"""


@over(
    "chosen, found",
    [
        ({}, ["passive", "1000"]),
        ({"OMP_WAIT_POLICY": "active"}, ["active", "None"]),
        ({"GOMP_SPINCOUNT": "7"}, ["None", "7"]),
    ],
)
def test_waiting_threads_soon_sleep_unless_the_user_chose(chosen: dict[str, str], found: list[str]) -> None:
    others = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env={**others, **chosen}, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == found
