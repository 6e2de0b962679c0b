"""Does the camera show what the policy was trained on? The likelihood of plans under other light and a covered lens.

    python examples/camera_monitor.py RUN/checkpoints/last --episodes 100

This runs an image policy in its env, undisturbed, for some ticks of each episode. It then changes the images and
computes the log-density of two plans given the changed images: of the plan that the undisturbed images led to, as a log
of good runs has it, and of the plan that the policy makes now, which is all that a robot has by itself. It prints the
area under the ROC curve: the probability that an undisturbed episode scores above a disturbed one (0.5: a guess, 1:
never wrong), with a 95 % interval over the episodes.
"""

import argparse
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from likelihood_monitor import area_under_roc
from torch import Tensor

from diffpolicy import DiffusionPolicy, PolicyController
from diffpolicy.evaluation.rollout import make_vector_env, observation_by_key, rollout
from diffpolicy.evaluation.settings import EnvConfig
from diffpolicy.policy.analysis import PolicyAnalysis
from diffpolicy.policy.observations import checked_observation

SEED, GREY = 100_000, 128


def covered(images: Tensor) -> Tensor:
    """A grey square of half the sides in the middle: images [batch, n_obs_steps, height, width, 3]."""
    height, width = images.shape[2:4]
    changed = images.clone()
    changed[:, :, height // 4 : -(height // 4), width // 4 : -(width // 4)] = GREY
    return changed


DISTURBANCES: dict[str, Callable[[Tensor], Tensor]] = {
    "light x 0.6": lambda images: (0.6 * images).to(torch.uint8),
    "grey square": covered,
    "black frame": torch.zeros_like,
}


def seen_after(policy: DiffusionPolicy, seeds: Sequence[int], ticks: int) -> dict[str, Tensor]:
    """The last n_obs_steps observations of one episode per seed, {key: [episodes, n_obs_steps, *shape]}."""
    config = policy.config
    recent: list[deque[dict[str, Any]]] = [deque(maxlen=config.window.n_obs_steps) for _ in seeds]

    def remember(env: Any, episode: np.ndarray, score: np.ndarray, observation: Any) -> None:
        now = checked_observation(observation_by_key(observation, policy), config.observations, (len(episode),))
        for slot in np.flatnonzero(episode >= 0):
            recent[episode[slot]].append({key: value[slot].clone() for key, value in now.items()})

    task = EnvConfig(**policy.metadata["env"])
    env = make_vector_env(task, len(seeds))
    rollout(PolicyController(policy), env, seeds, task.reset_options, remember, max_episode_steps=ticks, progress=True)
    env.close()
    return {key: torch.stack([torch.stack([now[key] for now in steps]) for steps in recent]) for key in recent[0][0]}


def planned(policy: DiffusionPolicy, observation: dict[str, Tensor]) -> Tensor:
    """The policy's plans [episodes, horizon, action]."""
    noises = [torch.Generator().manual_seed(index) for index in range(len(next(iter(observation.values()))))]
    return policy.predict_action_chunk(observation, noises).plan


def scores(policy: DiffusionPolicy, observation: dict[str, Tensor], plan: Tensor) -> np.ndarray:
    """The log-density of plans given observations, in nats [episodes]."""
    generator = torch.Generator().manual_seed(0)
    density = PolicyAnalysis(policy).log_likelihood(observation, plan, steps=10, probes=4, generator=generator)
    return density.physical.numpy()


def with_interval(familiar: np.ndarray, disturbed: np.ndarray) -> str:
    """The area under the ROC curve and its bootstrap interval; an episode is drawn with both of its scores."""
    draws = np.random.default_rng(0).integers(len(familiar), size=(1000, len(familiar)))
    low, high = np.quantile([area_under_roc(familiar[draw], disturbed[draw]) for draw in draws], [0.025, 0.975])
    return f"{area_under_roc(familiar, disturbed):.3f} [{low:.3f}, {high:.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--ticks", type=int, default=24, help="of each episode, at least n_obs_steps - 1")
    arguments = parser.parse_args()
    policy = DiffusionPolicy.from_pretrained(arguments.checkpoint)
    cameras = [key for key, spec in policy.config.observations.items() if spec.kind == "image"]
    seen = seen_after(policy, range(SEED, SEED + arguments.episodes), arguments.ticks)
    plan = planned(policy, seen)
    familiar = scores(policy, seen, plan)
    print(f"undisturbed: median log-density {np.median(familiar):.1f} nats, {len(familiar)} episodes")
    for name, change in DISTURBANCES.items():
        changed = {**seen, **{key: change(seen[key]) for key in cameras}}
        kept, own = scores(policy, changed, plan), scores(policy, changed, planned(policy, changed))
        print(
            f"{name}: AUROC {with_interval(familiar, kept)} of the undisturbed plan, "
            f"{with_interval(familiar, own)} of the policy's own"
        )


if __name__ == "__main__":
    main()
