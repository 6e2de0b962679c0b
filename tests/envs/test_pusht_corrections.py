"""Corrections of a policy's failures: where they begin, what they depend on, and what is refused."""

import re
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from diffpolicy_envs.experts import pusht
from diffpolicy_envs.pusht_world import SUCCESS_COVERAGE
from run_command import error_of

from diffpolicy import DiffusionPolicy
from diffpolicy.control.controller import PolicyController
from diffpolicy.data.replay_buffer import ReplayBuffer
from diffpolicy.demos.generate import generate
from diffpolicy.evaluation.rollout import make_vector_env, rollout
from diffpolicy.evaluation.saved_env import saved_env

STEPS = 14  # too few to solve an episode from a legacy start


@pytest.fixture(scope="module")
def checkpoint(shipped_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy that has no time to succeed."""
    policy = DiffusionPolicy.from_pretrained(shipped_checkpoint)
    policy.metadata["env"]["max_episode_steps"] = STEPS
    folder = tmp_path_factory.mktemp("policy") / "checkpoint"
    policy.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def corrections(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("corrections") / "one.zarr.zip"
    return generate("pusht", 3, 5, output, checkpoint=str(checkpoint))


def visited(checkpoint: Path, seed: int) -> np.ndarray:
    """The states [steps, 5] of the policy's episode for the first seed that the attempt `seed` draws."""
    policy = DiffusionPolicy.from_pretrained(checkpoint)
    env = saved_env(policy, "test")
    states: list[np.ndarray] = []
    start = int(np.random.default_rng([seed, 2]).integers(2**31, 2**32))
    rollout(
        PolicyController(policy, inference_batch=1),
        make_vector_env(env, 1),
        [start],
        env.reset_options,
        on_tick=lambda episode, seen, info, *_: states.append(info["state"][0].copy()),
        max_episode_steps=STEPS,
    )
    return np.array(states)


def test_a_correction_begins_where_the_policy_was_and_ends_on_the_goal(checkpoint: Path, corrections: Path) -> None:
    buffer = ReplayBuffer.open(corrections)
    env = gymnasium.make("diffpolicy_envs:diffpolicy/PushT-v0", obs_type="state").unwrapped
    for index, attributes in enumerate(buffer.episode_attributes):
        episode = buffer.episode(index)
        states = visited(checkpoint, attributes["seed"])
        assert len(states) == STEPS
        distance = np.abs(states[:, :4] - episode["state"][0, :4]).max(axis=1)
        assert distance.min() <= 1 / 32 + 1e-3, "half of the grid of stored states"
        _, info = env.reset(options={"state": episode["state"][0].astype(np.float64)})
        coverages = [info["coverage"]]
        for action in episode["action"]:
            coverages.append(env.step(action)[-1]["coverage"])
        assert max(coverages) > SUCCESS_COVERAGE


def test_corrections_do_not_depend_on_the_number_of_workers(
    checkpoint: Path, corrections: Path, tmp_path: Path
) -> None:
    two = generate("pusht", 3, 5, tmp_path / "two.zarr.zip", workers=2, checkpoint=str(checkpoint))
    assert two.read_bytes() == corrections.read_bytes()


def test_corrections_of_another_policy_and_demonstrations_are_told_apart(
    checkpoint: Path, corrections: Path, shipped_checkpoint: Path
) -> None:
    for other in (str(shipped_checkpoint), None):
        with pytest.raises(ValueError, match=r"exists, made with policy [0-9a-f]{64} \(expected (\w+)\); remove it"):
            generate("pusht", 3, 5, corrections, checkpoint=other)


def test_an_expert_that_never_succeeds_is_given_up(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffpolicy.demos.generate.FAILURES_IN_A_ROW", 2)
    with pytest.raises(ValueError, match="2 attempts in a row without a correction: the policy solved all"):
        generate("pusht", 1, 0, tmp_path / "out.zarr.zip", settings={"max_steps": 1}, checkpoint=str(checkpoint))


def test_policies_of_another_env_and_experts_that_cannot_begin_anywhere_are_refused(
    checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="reach cannot begin in any state; corrections are made for task=pusht"):
        generate("reach", 1, 0, tmp_path / "out.zarr.zip", checkpoint=str(checkpoint))
    policy = DiffusionPolicy.from_pretrained(checkpoint)
    policy.metadata["env"]["id"] = "diffpolicy_envs:diffpolicy/ObstacleReach-v0"
    policy.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=re.escape(f"expected a policy for {pusht.ENV}")):
        generate("pusht", 1, 0, tmp_path / "out.zarr.zip", checkpoint=str(tmp_path / "other"))
    assert not (tmp_path / "out.zarr.zip").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["mode=corrections"], r"give checkpoint=RUN/checkpoints/last"),
        (["checkpoint=here"], "give mode=corrections to correct its failures"),
        (["mode=dagger"], "mode: 'dagger' is unknown, expected demonstrations or corrections"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(tmp_path: Path, overrides: list[str], message: str) -> None:
    assert re.search(message, error_of("generate_demos", tmp_path, *overrides, f"output={tmp_path}/out.zarr.zip"))
