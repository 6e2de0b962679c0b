"""A program run by test_killed_conversion.py: each line of input starts a conversion in a forked child and kills it.

Input: the format to convert to, and after how many reads of the source the child tells and is killed, 0 for never. The
child waits in that read, so the kill falls between two writes, or, with `images`, within an episode. Output: "killed"
or "done".
"""

import os
import signal
import sys
from pathlib import Path

from diffpolicy.data import store
from diffpolicy.formats.convert import convert
from diffpolicy.formats.table import WriteSettings, open_recording

store.CHUNK_ROWS = 4  # so that there are many chunks


class Counted:
    """A reader that tells of a read by its number, and then waits to be killed."""

    def __init__(self, reader, stop_at: int, told: int) -> None:
        self._reader, self._left, self._told = reader, stop_at, told

    def read(self, key, episode, steps):
        self._left -= 1
        if self._left == 0:
            os.write(self._told, b".")
            signal.pause()
        return self._reader.read(key, episode, steps)

    def close(self) -> None:
        self._reader.close()


def work(source: str, output: str, to: str, stop_at: int, told: int) -> None:
    recording = open_recording(source, "lerobot")
    recording._reader = Counted(recording._reader, stop_at, told)
    convert(recording, Path(output), to, WriteSettings(fps=10))


def main(source: str, output: str) -> None:
    for line in sys.stdin:
        to, stop_at = line.split()
        listening, told = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(listening)
            status = 1
            try:
                work(source, output, to, int(stop_at), told)
                status = 0
            finally:
                os._exit(status)
        os.close(told)
        if os.read(listening, 1):  # nothing comes if the child ends by itself
            os.kill(child, signal.SIGKILL)
        os.close(listening)
        _, status = os.waitpid(child, 0)
        print("killed" if os.WIFSIGNALED(status) else "done" if status == 0 else "failed", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
