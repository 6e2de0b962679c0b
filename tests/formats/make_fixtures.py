"""Makes fixtures/ with the packages that own the formats; see fixtures/README.md for the commands.

    python make_fixtures.py lerobot_v3 | lerobot_v21 | minari | robomimic

It is run by hand, in an environment of its own, and never by the tests.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
from made import FPS, LENGTHS, TASKS, episode

FOLDER = Path(__file__).parent / "fixtures"


def lerobot(name: str, size: int, use_videos: bool) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    chosen = ("action", "observation.state", "observation.images.top") if use_videos else tuple(episode(0))
    arrays = {key: value for key, value in episode(0, size).items() if key in chosen}
    features = {
        key: {"dtype": str(value.dtype), "shape": value.shape[1:], "names": None} for key, value in arrays.items()
    }
    features["observation.state"]["names"] = ["x", "y", "angle"]
    features["observation.images.top"] = {
        "dtype": "video" if use_videos else "image",
        "shape": (size, size, 3),
        "names": ["height", "width", "channels"],
    }
    shutil.rmtree(FOLDER / name, ignore_errors=True)
    data = LeRobotDataset.create(f"local/{name}", FPS, features, FOLDER / name, "arm", use_videos=use_videos)
    for index, length in enumerate(LENGTHS):
        arrays = episode(index, size)
        for step in range(length):
            frame = {key: arrays[key][step] for key in chosen}
            if hasattr(data, "finalize"):
                data.add_frame({**frame, "task": TASKS[index]})
            else:  # up to 0.3
                data.add_frame(frame, task=TASKS[index])
        data.save_episode()
    if hasattr(data, "finalize"):
        data.finalize()
    shutil.rmtree(FOLDER / name / "images", ignore_errors=True)


def minari() -> None:
    import gymnasium
    import minari

    space = gymnasium.spaces.Box(-1e3, 1e3, (3,), np.float32)
    buffers = []
    for index, length in enumerate(LENGTHS):
        arrays = episode(index)
        last = arrays["observation.state"][-1:] + 1
        observations = {
            "state": np.concatenate([arrays["observation.state"], last]),
            "top": np.concatenate([arrays["observation.images.top"], arrays["observation.images.top"][-1:]]),
        }
        buffers.append(
            minari.data_collector.EpisodeBuffer(
                id=index,
                seed=index,
                observations=observations,
                actions=arrays["action"],
                rewards=arrays["next.reward"][:, 0].astype(np.float64),
                terminations=arrays["next.done"][:, 0],
                truncations=np.zeros(length, bool),
                infos={},
            )
        )
    images = gymnasium.spaces.Box(0, 255, (16, 16, 3), np.uint8)
    minari.create_dataset_from_buffers(
        "local/made-v0",
        buffers,
        action_space=gymnasium.spaces.Box(-1e3, 1e3, (2,), np.float32),
        observation_space=gymnasium.spaces.Dict({"state": space, "top": images}),
        data_format="hdf5",
        algorithm_name="formula",
        author="diffpolicy",
        description="formulas",
    )
    root = Path(minari.storage.local.get_dataset_path("local/made-v0"))
    shutil.rmtree(FOLDER / "minari", ignore_errors=True)
    shutil.copytree(root, FOLDER / "minari")


def robomimic() -> None:
    import h5py

    with h5py.File(FOLDER / "robomimic.hdf5", "w") as file:
        data = file.create_group("data")
        data.attrs["total"] = sum(LENGTHS)
        data.attrs["env_args"] = json.dumps({"env_name": "Lift", "type": 1, "env_kwargs": {"control_freq": FPS}})
        for index, length in enumerate(LENGTHS):
            arrays = episode(index)
            demo = data.create_group(f"demo_{index}")
            demo.attrs["num_samples"] = length
            demo.attrs["model_file"] = "<mujoco/>"
            demo["actions"] = arrays["action"].astype(np.float64)
            demo["states"] = arrays["observation.state"].astype(np.float64)
            demo["rewards"] = arrays["next.reward"][:, 0].astype(np.float64)
            demo["dones"] = arrays["next.done"][:, 0].astype(np.int64)
            for group in ("obs", "next_obs"):
                demo[f"{group}/eef_pos"] = arrays["observation.state"].astype(np.float64)
                images = arrays["observation.images.top"]
                demo.create_dataset(f"{group}/agentview_image", data=images, compression="gzip")
        file["mask/train"] = np.array(["demo_0"], dtype="S")
        file["mask/valid"] = np.array(["demo_1"], dtype="S")


MAKERS = {
    "lerobot_v3": lambda: (lerobot("lerobot_v3_png", 16, False), lerobot("lerobot_v3_mp4", 64, True)),
    "lerobot_v21": lambda: lerobot("lerobot_v21_mp4", 64, True),
    "minari": minari,
    "robomimic": robomimic,
}

if __name__ == "__main__":
    MAKERS[sys.argv[1]]()
