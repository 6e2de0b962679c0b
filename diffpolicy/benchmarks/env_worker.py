"""Child process of benchmark_envs.py: steps one contestant, block by block.

It needs only gymnasium, numpy and the contestant, so that an interpreter with other pinned versions can run it. It
reads one JSON request per line from stdin ({"seeds": [...], "steps": n}) and writes one JSON answer per line to stdout.
"""

import json
import sys
import time

import gymnasium
import numpy as np

ENVS = {"diffpolicy": "diffpolicy_envs:diffpolicy/PushT-v0", "gym-pusht": "gym_pusht:gym_pusht/PushT-v0"}


def main() -> None:
    """Arguments: the contestant, and "made" (as gymnasium.make returns it) or "bare" (without wrappers)."""
    name, wrapping = sys.argv[1:]
    env = gymnasium.make(ENVS[name])
    contestant = env if wrapping == "made" else env.unwrapped
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(run_block(contestant, name, request["seeds"], request["steps"])), flush=True)


def run_block(env, name: str, seeds: list[int], steps: int) -> dict[str, float]:
    """CPU seconds, rewards and contacts of one episode of `steps` steps per seed. Only the steps are timed."""
    seconds, reward_sum, contact_steps = 0.0, 0.0, 0
    for seed in seeds:
        reset_legacy(env, name, seed)
        actions = sweeping_actions(seed, steps)
        start = time.process_time()
        for action in actions:
            _, reward, _, _, info = env.step(action)
            reward_sum += reward
            contact_steps += info["n_contacts"] > 0
        seconds += time.process_time() - start
    count = len(seeds) * steps
    return {"seconds": seconds, "steps": count, "reward": reward_sum / count, "contact": contact_steps / count}


def reset_legacy(env, name: str, seed: int) -> None:
    """Start both contestants in the same state: the published start state of `seed`."""
    if name == "diffpolicy":
        env.reset(seed=seed, options={"start_rule": "legacy"})
        return
    draws = np.random.RandomState(seed)
    agent, block = draws.randint(50, 450, 2), draws.randint(100, 400, 2)
    env.reset(seed=seed, options={"reset_to_state": [*agent, *block, draws.randn() * 2 * np.pi - np.pi]})


def sweeping_actions(seed: int, steps: int) -> np.ndarray:
    """[steps, 2] float32 targets (px) that sweep between random points and so meet the block now and then."""
    draws = np.random.RandomState(seed)
    points = draws.uniform(80.0, 430.0, (steps // 15 + 2, 2))
    at = np.arange(steps) / 15.0
    return np.stack([np.interp(at, np.arange(len(points)), points[:, axis]) for axis in (0, 1)], 1).astype(np.float32)


if __name__ == "__main__":
    main()
