"""A third-party gymnasium env as a task: demonstrations from a short loop, and a folder with one YAML file."""

from pathlib import Path

import gymnasium
import numpy as np

from diffpolicy.data.replay_buffer import ReplayBuffer

TASK = """# @package _global_
task: pendulum
data:
  path: {data}
  observations: {{state: [observation]}}
env: {{id: Pendulum-v1}}
"""


def make_task(folder: Path, episodes: int = 3, steps: int = 60) -> Path:
    """Write FOLDER/task/pendulum.yaml and its demonstrations; returns FOLDER, for use as `--config-dir`."""
    buffer = ReplayBuffer.create(folder / "pendulum.zarr", {"observation": ((3,), "f4"), "action": ((1,), "f4")})
    env = gymnasium.make("Pendulum-v1")
    for seed in range(episodes):
        observation, _ = env.reset(seed=seed)
        rows: dict[str, list] = {"observation": [], "action": []}
        for _ in range(steps):
            action = np.clip([-8.0 * observation[1] - 2.0 * observation[2]], -2.0, 2.0).astype("f4")
            rows["observation"].append(observation)
            rows["action"].append(action)
            observation, *_ = env.step(action)
        buffer.append_episode(rows)
    (folder / "task").mkdir()
    text = TASK.format(data=folder / "pendulum.zarr")
    (folder / "task" / "pendulum.yaml").write_text(text, encoding="utf-8")
    return folder
