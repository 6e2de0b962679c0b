"""A child process that runs one contestant of a benchmark. Requests and answers are JSON, one per line."""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

from diffpolicy.system import children
from diffpolicy.system.schema import Range

Threads = Annotated[int, Range(1, 1024)]


class Child:
    """Runs `worker` with this or another interpreter until `close`.

    Args:
        python: the interpreter.
        worker: the program. It answers each line on stdin with a line on stdout.
        arguments: the program's arguments; the first one is the name of the contestant.
    """

    def __init__(self, python: str, worker: Path, arguments: list[str]) -> None:
        self.name = arguments[0]
        command_line = [python, children.__file__, str(os.getpid()), str(worker), *arguments]  # ends with this process
        # A file, because a pipe that nobody reads would block the child. Open until `close`.
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            command_line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True
        )

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send one request and return its answer.

        Raises:
            OSError: the child process ended.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise RuntimeError("child: stdin and stdout must be pipes")
        try:
            stdin.write(json.dumps(request) + "\n")
            stdin.flush()
            answer = next((line for line in stdout if line.startswith("{")), None)  # some packages print on import
        except BrokenPipeError:
            answer = None
        if answer is None:
            self._process.wait()
            self._errors.seek(0)
            reason = (self._errors.read().strip().splitlines() or ["nothing on stderr"])[-1]
            raise OSError(f"{self.name} in {self._process.args} gave no result: {reason}")
        return json.loads(answer)

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()


def find_peer(module: str, python: str | None) -> str | None:
    """Find an interpreter that has the peer's module: `python` if given, else this one.

    If this one does not have it, print a hint and return None.

    Raises:
        ValueError: `python` does not exist.
    """
    if python is None and importlib.util.find_spec(module):
        return sys.executable
    if python is None:
        print(f"{module} is not installed here; pass an interpreter that has it: peer_python=PYTHON")
    elif not Path(python).exists():
        raise ValueError(f"peer_python: {python} does not exist; expected an interpreter that has {module}")
    return python
