"""The scripts as a user runs them, in processes of their own that have torch and hydra loaded already."""

import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

from walk import CONTEXT, PATIENCE_S

REPOSITORY = Path(__file__).parents[1]


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`python scripts/SCRIPT ARGUMENTS` in the repository's folder."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        process = CONTEXT.Process(target=_main, args=(script, arguments, out, err))
        process.start()
        process.join(PATIENCE_S)
        process.kill()
        process.join()
        return subprocess.CompletedProcess([script, *arguments], process.exitcode, out.read_text(), err.read_text())


def _main(script: str, arguments: tuple[str, ...], out: Path, err: Path) -> None:
    for path, descriptor in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    sys.stdout, sys.stderr = (os.fdopen(descriptor, "w", buffering=1) for descriptor in (1, 2))
    os.chdir(REPOSITORY)
    path = str(REPOSITORY / "scripts" / script)
    sys.argv = [path, *arguments]
    runpy.run_path(path, run_name="__main__")
