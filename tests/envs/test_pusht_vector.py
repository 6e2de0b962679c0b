"""Push-T in gymnasium's vector envs."""

import gymnasium
import numpy as np
import pytest
from diffpolicy_envs.pusht import PushTEnv
from gymnasium.vector import AutoresetMode
from numpy.testing import assert_array_equal

NAME = "diffpolicy_envs:diffpolicy/PushT-v0"


@pytest.fixture(params=["sync", "async"])
def envs(request):
    made = gymnasium.make_vec(
        NAME,
        num_envs=3,
        vectorization_mode=request.param,
        vector_kwargs={"autoreset_mode": AutoresetMode.DISABLED},
    )
    yield made
    made.close()


def legacy(seed):
    return PushTEnv().reset(seed=seed, options={"start_rule": "legacy"})[0]


def test_masked_reset_restarts_only_the_masked(envs):
    first, _ = envs.reset(seed=[10, 11, 12], options={"start_rule": "legacy"})
    assert_array_equal(first, [legacy(10), legacy(11), legacy(12)])
    stepped, *_ = envs.step(np.full((3, 2), 256.0, dtype=np.float32))
    kept = stepped.copy()
    mask = np.array([False, True, False])
    again, _ = envs.reset(seed=[0, 21, 0], options={"reset_mask": mask, "start_rule": "legacy"})
    assert_array_equal(again, [kept[0], legacy(21), kept[2]])


def test_an_episode_does_not_depend_on_its_neighbours(envs):
    actions = np.random.default_rng(0).uniform(100, 400, (20, 3, 2)).astype(np.float32)
    together, _ = envs.reset(seed=[3, 4, 5])
    alone = PushTEnv()
    alone.reset(seed=4)
    for action in actions:
        together, rewards, _, _, infos = envs.step(action)
        observation, reward, _, _, info = alone.step(action[1])
        assert_array_equal(together[1], observation)
        assert rewards[1] == reward
        assert_array_equal(infos["agent_velocity"][1], info["agent_velocity"])
        assert infos["coverage"][1] == info["coverage"]


def test_time_limit_truncates_after_300_steps():
    env = gymnasium.make(NAME)
    env.reset(options={"state": [50.0, 50.0, 400.0, 400.0, 0.0]})
    ends = [env.step(np.array([50.0, 50.0], dtype=np.float32))[3] for _ in range(300)]
    assert ends == [False] * 299 + [True]
