"""Push-T: spaces, resets, actions, observations."""

import math
import subprocess
import sys
from itertools import pairwise

import diffpolicy_envs  # noqa: F401 - registers the ids
import gymnasium
import numpy as np
import pytest
from diffpolicy_envs.pusht import OBSERVATION_TYPES, PushTEnv
from diffpolicy_envs.pusht_world import GOAL_POSE, LOCAL_KEYPOINTS
from gymnasium.utils.env_checker import check_env
from numpy.testing import assert_allclose, assert_array_equal
from one_case import over

STATE = [123.25, 400.5, 200.125, 180.75, 2.5]


def run(env, seed, steps=60):
    generator = np.random.default_rng(seed)
    trace = [env.reset(seed=seed)[0]]
    for _ in range(steps):
        observation, reward, *_ = env.step(generator.uniform(0, 512, 2).astype(np.float32))
        trace.append(np.append(observation, reward))
    return np.concatenate([np.ravel(part) for part in trace])


def test_import_loads_no_engine():
    code = "import sys, diffpolicy_envs; print([m for m in ('pymunk', 'numba', 'cv2', 'pygame') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("obs_type", OBSERVATION_TYPES)
@pytest.mark.filterwarnings("ignore:.*symmetric and normalized.*")
@pytest.mark.filterwarnings("error")
def test_gymnasium_finds_nothing_wrong(obs_type):
    env = gymnasium.make("diffpolicy_envs:diffpolicy/PushT-v0", obs_type=obs_type)
    check_env(env.unwrapped, skip_render_check=True)  # frames: test_pusht_render.py
    assert env.spec is not None
    assert env.spec.max_episode_steps == 300


def test_same_seed_and_actions_give_the_same_episode():
    used = PushTEnv()
    run(used, seed=1)
    assert_array_equal(run(used, seed=5), run(PushTEnv(), seed=5))


def test_another_seed_is_another_start():
    assert not np.array_equal(PushTEnv().reset(seed=1)[0], PushTEnv().reset(seed=2)[0])


def test_set_state_is_observed_exactly():
    observation, info = PushTEnv().reset(options={"state": STATE})
    assert_array_equal(info["state"], STATE)
    assert_array_equal(observation, np.array(STATE, dtype=np.float32))
    assert_array_equal(info["agent_velocity"], [0.0, 0.0])


def test_set_state_does_not_move_by_itself():
    env = PushTEnv()
    env.reset(options={"state": STATE})
    _, _, _, _, info = env.step(np.array(STATE[:2]))
    assert_array_equal(info["state"], STATE)


def test_angle_is_observed_modulo_two_pi():
    observation, _ = PushTEnv().reset(options={"state": [*STATE[:4], -0.5]})
    assert observation[4] == pytest.approx(2 * math.pi - 0.5)


def test_legacy_start_does_not_depend_on_what_happened_before():
    used = PushTEnv()
    run(used, seed=3)
    options = {"start_rule": "legacy"}
    assert_array_equal(used.reset(seed=100000, options=options)[0], PushTEnv().reset(seed=100000, options=options)[0])


@over(
    "options, message",
    [
        ({"reset_to_state": STATE}, "unknown options .'reset_to_state'."),
        ({"start_rule": "old"}, "start_rule is 'old'; expected one of"),
        ({"start_rule": "legacy"}, "needs a seed, found None"),
        ({"state": STATE[:4]}, r"shape \(4,\); expected \(5,\)"),
        ({"state": "here"}, "expected five numbers"),
        ({"state": [math.nan, *STATE[1:]]}, "expected finite numbers"),
        ({"state": STATE, "start_rule": "legacy"}, "both a state and start_rule"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PushTEnv().reset(options=options)


@over(
    "arguments, message",
    [
        ({"obs_type": "image"}, "obs_type is 'image'; expected one of"),
        ({"render_mode": "ansi"}, "render_mode is 'ansi'"),
        ({"render_size": 0}, "render_size is 0"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        PushTEnv(**arguments)


@over(
    "action, message",
    [
        ([math.nan, 1.0], "expected two finite numbers"),
        ([1.0, math.inf], "expected two finite numbers"),
        ([1.0, 2.0, 3.0], r"shape \(3,\); expected \(2,\)"),
        ([[1.0, 2.0]], r"shape \(1, 2\); expected \(2,\)"),
        ([[1.0], [2.0]], r"shape \(2, 1\); expected \(2,\)"),
        (3.0, r"shape \(\); expected \(2,\)"),
    ],
)
@over("kind", [np.array, lambda action: action])
def test_wrong_actions_are_refused(action, message, kind):
    env = PushTEnv()
    env.reset(seed=0)
    before = env._state
    with pytest.raises(ValueError, match=message):
        env.step(kind(action))
    assert env._state == before


def test_actions_outside_the_box_are_clipped():
    outside, edge = PushTEnv(), PushTEnv()
    outside.reset(seed=0)
    edge.reset(seed=0)
    assert_array_equal(outside.step(np.array([-100.0, 900.0]))[0], edge.step(np.array([0.0, 512.0]))[0])


def test_agent_approaches_its_target_without_overshoot():
    env = PushTEnv()
    env.reset(options={"state": [100.0, 100.0, 400.0, 400.0, 0.0]})
    x_px = [env.step(np.array([200.0, 100.0]))[4]["state"][0] for _ in range(30)]
    assert all(earlier < later <= 200.0 for earlier, later in pairwise(x_px))
    assert x_px[-1] == pytest.approx(200.0, abs=1e-6)


def test_velocity_is_the_executed_one():
    env = PushTEnv()
    env.reset(options={"state": [100.0, 100.0, 400.0, 400.0, 0.0]})
    _, _, _, _, info = env.step(np.array([200.0, 100.0]))
    position, velocity = 100.0, 0.0
    for _ in range(10):
        velocity += (100.0 * (200.0 - position) - 20.0 * velocity) * 0.01
        position += velocity * 0.01
    # The same arithmetic in another order: rounding only.
    assert_allclose(info["agent_velocity"], [velocity, 0.0], rtol=1e-12)
    assert info["state"][0] == pytest.approx(position, rel=1e-12)


def test_keypoints_of_a_block_that_is_not_turned_are_the_local_ones():
    env = PushTEnv(obs_type="keypoints")
    observation, _ = env.reset(options={"state": [50.0, 60.0, 200.0, 300.0, 0.0]})
    # float32 at 400 px: 3e-5.
    assert_allclose(observation[:18].reshape(9, 2), LOCAL_KEYPOINTS + np.array([200.0, 300.0]), atol=3e-5)
    assert_array_equal(observation[18:], [50.0, 60.0])


def test_success_terminates_with_full_reward():
    env = PushTEnv()
    _, info = env.reset(options={"state": [50.0, 50.0, *GOAL_POSE]})
    assert info["is_success"]
    _, reward, terminated, truncated, info = env.step(np.array([50.0, 50.0]))
    assert (reward, terminated, truncated, info["is_success"]) == (1.0, True, False, True)


def test_contacts_are_counted_while_the_agent_pushes():
    env = PushTEnv()
    env.reset(options={"state": [256.0, 150.0, 256.0, 200.0, 0.0]})  # the bar's outer face is at y = 200
    counts = [env.step(np.array([256.0, 300.0]))[4]["n_contacts"] for _ in range(4)]
    assert counts[0] == 0 or counts[0] == 1
    assert counts[-1] == 1


def test_step_before_reset_is_refused():
    with pytest.raises(gymnasium.error.ResetNeeded):
        PushTEnv().step(np.zeros(2))


@pytest.mark.parametrize("obs_type", ["state", "keypoints"])
def test_observations_stay_in_their_space_under_rough_handling(obs_type):
    env = PushTEnv(obs_type=obs_type)
    generator = np.random.default_rng(0)
    for seed in range(10):
        observation, _ = env.reset(seed=seed)
        for _ in range(100):
            assert env.observation_space.contains(observation)
            block = env._state[2:4] + generator.normal(size=2) * 60  # push at the block, often into walls
            for _ in range(2):
                observation, *_ = env.step(block)
