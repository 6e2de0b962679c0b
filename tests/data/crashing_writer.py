"""A program run by test_crash.py: a forked child changes a buffer without pause, and each line of input kills it once.

Input: how many lines the child first writes to the log file, and how many seconds later it is killed. Counting lines
guarantees progress even on a slow machine. Output: "killed". The child logs every operation that has completed.
"""

import os
import signal
import sys
import time

import numpy as np

from diffpolicy.data import store
from diffpolicy.data.replay_buffer import ReplayBuffer

store.CHUNK_ROWS = 64  # so that most episodes cross a chunk border


def work(path: str, log: int) -> None:
    random = np.random.default_rng(int.from_bytes(os.urandom(4), "little"))
    buffer = ReplayBuffer.open(path, mode="a")
    tag = time.time_ns()  # never used before, even if all earlier episodes were dropped
    while True:
        tag += 1
        length = int(random.integers(1, 200))
        step = np.arange(length)
        arrays = {"tag": np.full(length, tag), "step": step, "wide": np.tile(step[:, None], (1, 40))}
        buffer.append_episode(arrays, {"tag": tag, "length": length})
        os.write(log, f"appended {tag}\n".encode())
        if random.random() < 0.5 or buffer.n_episodes > 12:
            count = min(buffer.n_episodes, int(random.integers(1, 4)))
            chosen = random.choice(buffer.n_episodes, count, replace=False).tolist()
            tags = [buffer.episode_attributes[i]["tag"] for i in chosen]
            os.write(log, f"dropping {tags}\n".encode())
            buffer.drop_episodes(chosen)
            os.write(log, f"dropped {tags}\n".encode())


def main(path: str, log_path: str) -> None:
    # This process itself never touches zarr, so that forking it is safe.
    for line in sys.stdin:
        lines_first, delay_s = line.split()
        goal = count_lines(log_path) + int(lines_first)
        child = os.fork()
        if child == 0:
            try:
                work(path, os.open(log_path, os.O_WRONLY | os.O_APPEND))
            finally:
                os._exit(1)
        give_up = time.monotonic() + 300
        while count_lines(log_path) < goal and time.monotonic() < give_up:
            time.sleep(0.005)
        time.sleep(float(delay_s))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        print("killed" if os.WIFSIGNALED(status) else "failed by itself", flush=True)


def count_lines(path: str) -> int:
    with open(path) as file:
        return sum(1 for _ in file)


main(sys.argv[1], sys.argv[2])
