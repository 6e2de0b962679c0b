"""Push-T is the published env: it replays the human data and pays gym-pusht's rewards."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
from diffpolicy_envs.pusht import PushTEnv
from diffpolicy_envs.pusht_render import PushTRenderer
from diffpolicy_envs.pusht_world import block_keypoints
from one_case import over

# Block pose and the reward of gym-pusht 0.1.8 there.
GYM_PUSHT_REWARDS = [
    (256.0, 256.0, 0.7854, 1.0),
    (256.695, 254.656, 0.7762, 1.0),
    (246.494, 249.552, 0.6012, 0.8526162264344361),
    (254.825, 249.663, 0.8125, 0.8492348352614411),
    (256.784, 255.065, 0.5337, 0.6264456275796977),
    (245.226, 255.03, 0.8307, 0.7176878537005822),
    (225.397, 246.445, 0.394, 0.6365231889335284),
    (239.823, 277.218, 0.4624, 0.3430106316705224),
    (254.049, 309.063, 0.0851, 0.1112429967169945),
    (249.298, 262.628, 0.8619, 0.789110236112767),
    (182.497, 260.568, 2.416, 0.06848580169065858),
    (70.343, 359.126, 1.0718, 0.0),
]


@pytest.fixture(scope="module")
def human():
    zarr = pytest.importorskip("zarr")
    path = Path(os.environ.get("DIFFPOLICY_DATA", "")) / "pusht_human" / "pusht_cchi_v7_replay.zarr"
    if "DIFFPOLICY_DATA" not in os.environ or not path.exists():
        pytest.skip("DIFFPOLICY_DATA does not name a folder with pusht_human/pusht_cchi_v7_replay.zarr")
    return zarr.open(str(path), mode="r")


def replay(human):
    """Per stored row: the env's state before the action [rows, 5], and `n_contacts` of the action before."""
    actions = human["data/action"][:]
    states, contacts, start = [], [], 0
    env = PushTEnv()
    for seed, end in enumerate(human["meta/episode_ends"][:]):
        _, info = env.reset(seed=seed, options={"start_rule": "legacy"})
        for action in actions[start:end]:
            states.append(info["state"])
            contacts.append(info["n_contacts"])
            _, _, _, _, info = env.step(action)
        start = end
    return np.array(states), np.array(contacts)


def test_human_episodes_replay_open_loop(human):
    states, contacts = replay(human)
    stored = human["data/state"][:]
    error = states - stored
    error[:, 4] = (error[:, 4] + math.pi) % (2 * math.pi) - math.pi
    # Stored as float32, so 512 px carry 1.5e-5; the physics itself repeats to the last digit.
    assert np.abs(error).max() < 1e-4
    starts = np.concatenate([[0], human["meta/episode_ends"][:-1]])
    later = np.setdiff1d(np.arange(len(stored)), starts)
    # The recorder counted in another window of time: where contact begins or ends the counts differ by one.
    assert np.mean(contacts[later] == human["data/n_contacts"][:, 0][later]) > 0.96


def test_keypoints_are_those_of_the_human_data(human):
    states, stored = human["data/state"][:].astype(np.float64), human["data/keypoint"][:]
    errors_px = [np.abs(block_keypoints(*row[2:]) - kept).max() for row, kept in zip(states, stored, strict=True)]
    # Local keypoints are known to 3 digits; where the block moves, stored keypoints lag by a little.
    assert np.median(errors_px) < 1e-3
    assert np.percentile(errors_px, 99) < 0.05


def test_frames_look_like_the_human_data(human):
    renderer = PushTRenderer(96)
    rows = np.arange(0, human["data/state"].shape[0], 500)
    for row, state in zip(rows, human["data/state"][:][rows].astype(np.float64), strict=True):
        difference = np.abs(renderer.draw(state).astype(np.float64) - human["data/img"][int(row)])
        # Another drawing library rounds edges otherwise. A blank frame is 5.7 away, a block 5 px off 0.8.
        assert difference.mean() < 0.35


@over("x, y, angle, reward", GYM_PUSHT_REWARDS)
def test_rewards_are_gym_pushts(x, y, angle, reward):
    env = PushTEnv()
    env.reset(options={"state": [20.0, 20.0, x, y, angle]})
    # Two exact computations of one area: rounding only.
    assert env.step(np.array([20.0, 20.0]))[1] == pytest.approx(reward, abs=1e-12)
