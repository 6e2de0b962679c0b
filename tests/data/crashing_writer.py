"""Run by test_crash.py: changes a buffer without pause in a forked child and kills it; one line of input per kill.

Input: seconds until the kill. Output: "killed". The child notes what it was told to be done in the log file.
"""

import os
import signal
import sys
import time

import numpy as np

from diffpolicy.data import store
from diffpolicy.data.replay_buffer import ReplayBuffer

store.CHUNK_ROWS = 64  # so that most episodes cross a chunk border


def work(path: str, log: int, ready: int) -> None:
    random = np.random.default_rng(int.from_bytes(os.urandom(4), "little"))
    buffer = ReplayBuffer.open(path, mode="a")
    tag = 1 + max([each["tag"] for each in buffer.episode_attributes], default=0) + 1000
    os.write(ready, b".")
    while True:
        tag += 1
        length = int(random.integers(1, 200))
        step = np.arange(length)
        arrays = {"tag": np.full(length, tag), "step": step, "wide": np.tile(step[:, None], (1, 40))}
        buffer.append_episode(arrays, {"tag": tag, "length": length})
        os.write(log, f"appended {tag}\n".encode())
        if random.random() < 0.3 or buffer.n_episodes > 12:
            count = min(buffer.n_episodes, int(random.integers(1, 4)))
            chosen = random.choice(buffer.n_episodes, count, replace=False).tolist()
            tags = [buffer.episode_attributes[i]["tag"] for i in chosen]
            os.write(log, f"dropping {tags}\n".encode())
            buffer.drop_episodes(chosen)
            os.write(log, f"dropped {tags}\n".encode())


def main(path: str, log_path: str) -> None:
    # This process itself never touches zarr, so that forking it is safe.
    for line in sys.stdin:
        reading, ready = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                work(path, os.open(log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), ready)
            finally:
                os._exit(1)
        os.close(ready)
        if os.read(reading, 1) == b".":
            time.sleep(float(line))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        os.close(reading)
        print("killed" if os.WIFSIGNALED(status) else "failed by itself", flush=True)


main(sys.argv[1], sys.argv[2])
