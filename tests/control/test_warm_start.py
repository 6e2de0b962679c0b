"""A robot's plan starts from its last one, if it has one."""

import numpy as np
import pytest
import torch

from diffpolicy import PolicyController
from diffpolicy.diffusion.samplers.ancestral import DdimConfig

WARM = DdimConfig(steps=4, warm_start=2)


class Recorded:
    """Remembers the last plans that a policy is given, None for calls from noise, and the plans that it makes."""

    def __init__(self, policy, monkeypatch: pytest.MonkeyPatch) -> None:
        self.previous, self.rows, self.plans = [], [], []
        predict = policy.predict_action_chunk

        def predict_action_chunk(observation, generators, sampler, constrain, guide, previous=None):
            chunk = predict(observation, generators, sampler, constrain, guide, previous)
            self.previous.append(previous)
            self.rows.append(len(sampler))
            self.plans.append(chunk.plan)
            return chunk

        monkeypatch.setattr(policy, "predict_action_chunk", predict_action_chunk)


def observation(tick: int, robots: list[int]) -> dict[str, np.ndarray]:
    return {
        "position": 0.01 * tick + 0.1 * np.array(robots)[:, None] * np.ones(3),
        "goal": np.full((len(robots), 2), 0.5),
    }


def run(controller: PolicyController, ticks: range, robots: list[int]) -> np.ndarray:
    return np.stack([controller.select_action(observation(tick, robots)) for tick in ticks])


def test_the_first_plan_is_from_noise_and_later_ones_from_the_last_plan_shifted(small_policy, monkeypatch) -> None:
    recorded, controller = Recorded(small_policy, monkeypatch), PolicyController(small_policy, WARM)
    controller.reset([0, 1])
    run(controller, range(17), [0, 1])
    assert recorded.rows == [4, 2, 2]
    assert recorded.previous[0] is None
    for before, given in zip(recorded.plans, recorded.previous[1:], strict=False):
        rows = np.minimum(np.arange(16) + 8, 15)  # 8 actions were executed; row 0 is the past
        torch.testing.assert_close(given, before[:, rows], rtol=0, atol=0)


def test_only_robots_that_are_reset_begin_from_noise(small_policy, monkeypatch) -> None:
    recorded, controller = Recorded(small_policy, monkeypatch), PolicyController(small_policy, WARM)
    controller.reset([0, 1, 2])
    run(controller, range(8), [0, 1, 2])
    controller.reset([0, 7, 2], mask=np.array([False, True, False]))
    run(controller, range(8, 9), [0, 1, 2])
    assert recorded.rows == [4, 2, 4]
    assert [len(plan) for plan in recorded.plans] == [3, 2, 1]
    rows = np.minimum(np.arange(16) + 8, 15)
    torch.testing.assert_close(recorded.previous[1], recorded.plans[0][[0, 2]][:, rows], rtol=0, atol=0)


def test_an_episode_is_bit_equal_alone_or_among_others_that_begin_later(small_policy) -> None:
    controller = PolicyController(small_policy, WARM, inference_batch=16)
    robots = list(range(5))
    controller.reset(robots)
    first = run(controller, range(8), robots)
    controller.reset(robots, mask=np.array([False, True, False, True, False]))
    among = np.concatenate([first, run(controller, range(8, 20), robots)])
    for robot, began in ((0, 0), (2, 0), (3, 8)):
        controller.reset([robot])
        np.testing.assert_array_equal(run(controller, range(began, 20), [robot])[:, 0], among[began:, robot])


def test_without_a_warm_start_nothing_is_given(small_policy, monkeypatch) -> None:
    recorded, controller = Recorded(small_policy, monkeypatch), PolicyController(small_policy, "ddim", 4)
    controller.reset([0])
    run(controller, range(9), [0])
    assert recorded.previous == [None, None]
