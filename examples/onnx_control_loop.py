"""Acts on Push-T with onnxruntime and numpy, without torch: python examples/onnx_control_loop.py FOLDER/policy.onnx

    python scripts/export_policy.py checkpoint=data/checkpoints/pusht_small output=FOLDER

Needs onnxruntime, numpy and, for the env alone, the extra `envs`. On a robot, replace the env. What the program has to
know of the policy is in the metadata of the file: docs/onnx.md. examples/control_loop.py shows what a real clock needs.
"""

import argparse
import json
import sys
from collections import deque
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import onnxruntime

Observation = Mapping[str, npt.NDArray[Any]]


class OnnxPolicy:
    """Plans chunks of actions with policy.onnx, and hands them out one by one.

    Args:
        path: of policy.onnx.
        threads: processors that a plan may use.
    """

    def __init__(self, path: str, threads: int = 1) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        texts = self._session.get_modelmeta().custom_metadata_map
        self.about = {name: json.loads(text) for name, text in texts.items()}
        self.reset(seed=0)

    def reset(self, seed: int) -> None:
        """Forget what was seen; `seed` is that of the noise."""
        self._random = np.random.default_rng(seed)
        self._seen: deque[Observation] = deque(maxlen=self.about["window"]["n_obs_steps"])
        self._actions: list[npt.NDArray[np.float32]] = []

    def select_action(self, observation: Observation) -> npt.NDArray[np.float32]:
        """The action [action_dim] for the present observation {key: [*shape]}, both in physical units.

        Raises:
            ValueError: the plan has numbers that are not finite.
        """
        missing = self._seen.maxlen - len(self._seen) if self._seen.maxlen else 0
        self._seen.extend([observation] * max(1, missing))  # at the start there is no past: the first is repeated
        if not self._actions:
            self._actions = list(self._plan())
        return self._actions.pop(0)

    def _plan(self) -> npt.NDArray[np.float32]:
        window = {
            key: np.stack([seen[key] for seen in self._seen])[None].astype(spec["dtype"])
            for key, spec in self.about["observations"].items()
        }
        shape = len(self.about["sampler"]["rows"]) + 1, 1, *self.about["action"]["encoded"]
        noise = self._random.standard_normal(shape, dtype=np.float32)
        found: Any = self._session.run(["actions", "is_finite"], {"noise": noise, **window})
        actions, is_finite = found
        if not is_finite.all():
            raise ValueError("the plan has NaN or infinite values; check the observations")
        return actions[0]


def main() -> None:
    parser = argparse.ArgumentParser(description="Push the T with an exported policy.")
    parser.add_argument("policy", help="policy.onnx, as scripts/export_policy.py writes it")
    parser.add_argument("--episodes", type=int, default=3)
    parser.add_argument("--seed", type=int, default=100_000, help="of the first episode")
    parser.add_argument("--ticks", type=int, default=None, help="most ticks of an episode; by default the env's")
    arguments = parser.parse_args()
    try:
        policy = OnnxPolicy(arguments.policy)
    except Exception as error:  # onnxruntime has errors of its own, which inherit from Exception alone
        sys.exit(f"error: {arguments.policy}: {str(error).splitlines()[0]}")
    if list(policy.about["observations"]) != ["keypoints"]:
        sys.exit(f"error: {arguments.policy} sees {', '.join(policy.about['observations'])}, expected keypoints")
    env = gymnasium.make("diffpolicy_envs:diffpolicy/PushT-v0", max_episode_steps=arguments.ticks, obs_type="keypoints")
    for seed in range(arguments.seed, arguments.seed + arguments.episodes):
        best, is_success = run(env, policy, seed)
        print(f"episode {seed}: coverage {best:.2f}, success {is_success}")


def run(env: gymnasium.Env[Any, Any], policy: OnnxPolicy, seed: int) -> tuple[float, bool]:
    """Run one episode; the highest coverage, and whether it was a success."""
    observation, _ = env.reset(seed=seed, options={"start_rule": "legacy"})
    policy.reset(seed)
    best, is_success, is_over = 0.0, False, False
    while not is_over:
        observation, _, terminated, truncated, info = env.step(policy.select_action({"keypoints": observation}))
        best, is_success = max(best, info["coverage"]), is_success or info["is_success"]
        is_over = terminated or truncated
    return best, is_success


if __name__ == "__main__":
    main()
