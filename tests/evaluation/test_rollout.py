"""Rollouts in the real env: scores, seeds, and episodes that do not depend on their company."""

from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest

from diffpolicy import DiffusionPolicy, PolicyController
from diffpolicy.evaluation.evaluate import evaluate, latency_ms, load_for_evaluation, record_videos, summarize
from diffpolicy.evaluation.rollout import Episode, make_vector_env, rollout
from diffpolicy.evaluation.settings import EnvConfig
from diffpolicy.evaluation.video import draw_zones
from diffpolicy.safety.build import SafetyConfig, build_safety

PUSHT = EnvConfig("diffpolicy_envs:diffpolicy/PushT-v0", {"obs_type": "keypoints"}, {"start_rule": "legacy"})
SAMPLER = {"name": "ddim", "steps": 2}


@pytest.fixture
def policy(tiny_checkpoint: Path) -> DiffusionPolicy:
    return DiffusionPolicy.from_pretrained(tiny_checkpoint)


class Recorder:
    """A vector env, and the `OnStep` of its rollout, that remembers the actions of every episode."""

    def __init__(self, env) -> None:
        self.env, self.num_envs = env, env.num_envs
        self.actions: dict[int, list[list[float]]] = {}

    def __call__(self, env, episode: np.ndarray, score: np.ndarray, observation: object) -> None:
        self.episode = episode.copy()

    def reset(self, **arguments):
        return self.env.reset(**arguments)

    def step(self, action: np.ndarray):
        for slot in np.flatnonzero(self.episode >= 0):
            self.actions.setdefault(int(self.episode[slot]), []).append(action[slot].tolist())
        return self.env.step(action)


def run(
    policy: DiffusionPolicy, seeds: list[int], num_envs: int, inference_batch: int
) -> list[tuple[Episode, list[list[float]]]]:
    """Results and actions of short episodes, which end within a chunk of 8 actions, as the whole ones do."""
    controller = PolicyController(policy, policy.sampler(SAMPLER), inference_batch=inference_batch)
    env = make_vector_env(EnvConfig(PUSHT.id, {**PUSHT.kwargs, "max_episode_steps": 100}), num_envs)
    recorder = Recorder(env)
    try:
        episodes = rollout(controller, recorder, seeds, PUSHT.reset_options, on_step=recorder)
        return [(episode, recorder.actions[i]) for i, episode in enumerate(episodes)]
    finally:
        env.close()


@pytest.mark.parametrize("inference_batch", [16, 64])  # from 64 on, the network's own kernels
def test_the_same_seed_gives_the_bit_same_episode_alone_or_in_a_batch(
    policy: DiffusionPolicy, inference_batch: int
) -> None:
    seeds = [100, 101, 102, 103, 104]
    together = run(policy, seeds, 5, inference_batch)
    assert [(episode.seed, episode.length, len(actions)) for episode, actions in together] == [
        (seed, 100, 100) for seed in seeds
    ]
    assert len({str(actions[-1]) for _, actions in together}) == 5
    assert [run(policy, [seed], 1, inference_batch)[0] for seed in seeds[:2]] == together[:2]
    assert run(policy, seeds, 2, inference_batch) == together, "envs that take a second episode give the same results"


def test_the_score_is_the_largest_reward_of_the_episode(policy: DiffusionPolicy) -> None:
    rewards = []

    class Watcher:
        """The env, remembering rewards."""

        def __init__(self, env) -> None:
            self.env, self.num_envs = env, env.num_envs

        def reset(self, **arguments):
            return self.env.reset(**arguments)

        def step(self, action):
            result = self.env.step(action)
            rewards.append(result[1][0])
            return result

    env = make_vector_env(PUSHT, 1)
    controller = PolicyController(policy, policy.sampler(SAMPLER))
    (episode,) = rollout(controller, Watcher(env), [3], PUSHT.reset_options)
    env.close()
    assert episode.length == len(rewards) == 300
    assert episode.score == max(rewards)
    assert not episode.success


def test_an_episode_ends_on_success(policy: DiffusionPolicy) -> None:
    """The block starts in the goal pose, as the legacy rule never does."""
    env = make_vector_env(PUSHT, 2)
    controller = PolicyController(policy, policy.sampler(SAMPLER))
    options = {"state": np.array([50.0, 50.0, 256.0, 256.0, np.pi / 4])}
    episodes = rollout(controller, env, [0, 1, 2], options)
    env.close()
    assert [(e.success, e.length, e.score) for e in episodes] == [(True, 1, 1.0)] * 3


def test_videos_show_the_same_episodes_with_the_score_drawn_in(policy: DiffusionPolicy, tmp_path: Path) -> None:
    options = {"state": np.array([50.0, 50.0, 256.0, 256.0, np.pi / 4])}
    config = EnvConfig(PUSHT.id, PUSHT.kwargs, options)
    (episode,) = record_videos(policy, config, SAMPLER, [7], 16, tmp_path)
    assert episode.success
    frames = imageio.imread(tmp_path / "episode_000_seed_7.mp4")
    assert frames.shape == (2, 512, 512, 3), "one frame before each action and one after the last"
    corner = frames[:, 10:40, 10:200].astype(float)
    assert (corner.min(axis=(1, 2, 3)) < 100).all(), "the score is drawn in dark"
    assert np.abs(corner[0] - corner[1]).max() > 50, "the score changed from 0 to 1"
    assert frames.astype(float).std() > 10


@pytest.mark.parametrize("size", [256, 512, 768])
def test_a_frame_differs_exactly_in_the_zones(size: int) -> None:
    frame = np.full((size, size, 3), 200, dtype=np.uint8)
    frame[:, : size // 2] = 90
    zones = [
        (np.array([[120.0, 200.0]] * 4), 40.0),
        (np.array([[300.0, 300], [400, 300], [400, 360], [300, 360]]), 0.0),
    ]
    drawn = draw_zones(frame, zones)
    y, x = np.mgrid[:size, :size] * 512 / size
    disc = np.hypot(x - 120.0, y - 200.0) - 40.0
    box = np.maximum(abs(x - 350.0) - 50.0, abs(y - 330.0) - 30.0)
    depth, changed = np.minimum(disc, box), (drawn != frame).any(-1)
    pixel = 512 / size
    assert changed[depth < -pixel].all()
    assert not changed[depth > pixel].any()
    red = drawn[..., 0].astype(float) - drawn[..., 1]
    assert np.median(red[(depth > -pixel) & (depth < 0.0)]) > 100.0, "the outline is red"
    assert 20.0 < red[depth < -6.0].min() <= red[depth < -6.0].max() < 60.0, "the fill is light"
    assert draw_zones(frame, []) is frame


def test_videos_show_the_zones_that_safety_forbids(policy: DiffusionPolicy, tmp_path: Path) -> None:
    options = {"state": np.array([50.0, 50.0, 256.0, 256.0, np.pi / 4])}
    config = EnvConfig(PUSHT.id, PUSHT.kwargs, options)
    safety = build_safety(SafetyConfig(mode="last", keep_out=[[120.0, 400.0, 40.0]]))
    record_videos(policy, config, SAMPLER, [7], 16, tmp_path / "with", safety)
    record_videos(policy, config, SAMPLER, [7], 16, tmp_path / "without")
    zone, plain = (imageio.imread(tmp_path / name / "episode_000_seed_7.mp4")[0] for name in ("with", "without"))
    inside, outside = np.s_[380:420, 100:140], np.s_[300:340, 100:140]
    assert zone[inside][..., 1].mean() < plain[inside][..., 1].mean() - 20.0, "less green: redder than before"
    assert abs(zone[outside].astype(float) - plain[outside]).max() < 8.0, "up to the codec's own noise"


def test_videos_give_the_results_of_the_evaluation(policy: DiffusionPolicy, tmp_path: Path) -> None:
    seeds = [11, 12, 13]
    results = evaluate(policy, PUSHT, SAMPLER, seeds, inference_batch=16)
    assert record_videos(policy, PUSHT, SAMPLER, seeds[:1], 16, tmp_path) == results[:1]


def test_a_summary_has_means_and_intervals() -> None:
    episodes = [Episode(seed, score, score > 0.9, 10) for seed, score in enumerate([1.0, 0.5, 0.6, 0.7])]
    summary = summarize(episodes)
    assert summary["mean_score"] == pytest.approx(0.7)
    assert summary["success_rate"] == 0.25
    assert summary["score_ci95"][0] < 0.7 < summary["score_ci95"][1]
    assert summary["success_ci95"] == pytest.approx((0.0456, 0.6994), abs=1e-4)


def test_latency_percentiles_are_ordered(policy: DiffusionPolicy) -> None:
    (latency,) = latency_ms([(policy, SAMPLER)], repeats=5)
    assert 0 < latency["p50"] <= latency["p95"] <= latency["p99"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": "diffpolicy_envs:diffpolicy/Nothing-v0"}, "cannot be made"),
        ({"kwargs": {"obs_type": "sound"}}, "sound"),
        ({"kwargs": {"obs_types": "keypoints"}}, "cannot be made"),
    ],
)
def test_an_env_that_cannot_be_made_is_named(change: dict, message: str) -> None:
    config = {"id": PUSHT.id, "kwargs": PUSHT.kwargs, "reset_options": {}, **change}
    with pytest.raises(ValueError, match=message):
        make_vector_env(EnvConfig(**config), 1)


def test_an_env_of_other_observations_is_refused(policy: DiffusionPolicy) -> None:
    env = make_vector_env(EnvConfig(PUSHT.id, {"obs_type": "state"}), 1)
    with pytest.raises(ValueError, match=r"keypoints has shape \[1, 5\], expected \[1, 20\]"):
        rollout(PolicyController(policy, policy.sampler(SAMPLER)), env, [0], {})
    env.close()


def test_a_checkpoint_of_another_task_or_without_env_is_refused(policy: DiffusionPolicy, tmp_path: Path) -> None:
    import torch

    policy.metadata = {"task": "pusht", "env": None}
    policy.save_pretrained(tmp_path / "saved")
    with pytest.raises(ValueError, match="trained for task pusht, not reach"):
        load_for_evaluation(str(tmp_path / "saved"), "reach", None, torch.device("cpu"))
    with pytest.raises(ValueError, match="no env to evaluate in"):
        load_for_evaluation(str(tmp_path / "saved"), None, None, torch.device("cpu"))
