"""Does the robot see what the policy was trained on? The likelihood of plans detects unfamiliar observations.

    python examples/likelihood_monitor.py data/checkpoints/pusht_small data/pusht_expert.zarr.zip

For windows of demonstrations, this computes the log-density of the recorded actions given the recorded observation, and
given the same observation with everything but the robot shifted by some pixels. It prints the area under the ROC curve:
the probability that a familiar observation scores above a shifted one (0.5: a guess, 1: never wrong).
"""

import argparse

import numpy as np
import torch

from diffpolicy import DiffusionPolicy
from diffpolicy.data.replay_buffer import ReplayBuffer
from diffpolicy.policy.analysis import PolicyAnalysis


def windows(path: str, count: int, n_obs_steps: int, horizon: int) -> tuple[np.ndarray, np.ndarray]:
    """Observations [count, n_obs_steps, 20] and plans [count, horizon, 2] from the middle of `count` episodes."""
    buffer = ReplayBuffer.open(path)
    ends = np.asarray(buffer.episode_ends)
    starts = np.concatenate([[0], ends[:-1]])
    long_enough = np.flatnonzero(ends - starts >= horizon)
    chosen = long_enough[np.linspace(0, len(long_enough) - 1, count).astype(int)]
    first = starts[chosen] + (ends[chosen] - starts[chosen] - horizon) // 2
    rows = first[:, None] + np.arange(horizon)
    keypoints = np.asarray(buffer["keypoint"])[rows[:, :n_obs_steps]].reshape(count, n_obs_steps, -1)
    agent = np.asarray(buffer["state"])[rows[:, :n_obs_steps], :2]
    return np.concatenate([keypoints, agent], axis=-1), np.asarray(buffer["action"])[rows]


def area_under_roc(familiar: np.ndarray, shifted: np.ndarray) -> float:
    """The probability that a familiar score is above a shifted one."""
    return float((familiar[:, None] > shifted).mean() + 0.5 * (familiar[:, None] == shifted).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("data")
    parser.add_argument("--windows", type=int, default=60)
    parser.add_argument("--shifts", type=float, nargs="+", default=[5.0, 10.0, 20.0, 40.0], help="px")
    arguments = parser.parse_args()
    policy = DiffusionPolicy.from_pretrained(arguments.checkpoint)
    analysis, window = PolicyAnalysis(policy), policy.config.window
    observations, plans = windows(arguments.data, arguments.windows, window.n_obs_steps, window.horizon)

    def scores(shift_px: float) -> np.ndarray:
        moved = observations.copy()
        angles = np.random.default_rng(0).uniform(0.0, 2.0 * np.pi, len(moved))
        moved[..., 0:-2:2] += shift_px * np.cos(angles)[:, None, None]
        moved[..., 1:-2:2] += shift_px * np.sin(angles)[:, None, None]
        observation = {"keypoints": torch.from_numpy(moved).float()}
        generator = torch.Generator().manual_seed(0)
        plan = torch.from_numpy(plans)
        density = analysis.log_likelihood(observation, plan, steps=10, probes=4, generator=generator)
        return density.physical.numpy()

    familiar = scores(0.0)
    print(f"familiar: median log-density {np.median(familiar):.1f} nats, {len(familiar)} windows")
    for shift_px in arguments.shifts:
        shifted = scores(shift_px)
        auroc = area_under_roc(familiar, shifted)
        print(f"shifted by {shift_px:g} px: median {np.median(shifted):.1f} nats, AUROC {auroc:.3f}")


if __name__ == "__main__":
    main()
