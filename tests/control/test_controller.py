"""The controller: history, receding horizon, resets, one noise stream an episode."""

import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from one_case import over

from diffpolicy import DiffusionPolicy, PolicyController
from diffpolicy.diffusion.samplers.ancestral import DdimConfig
from diffpolicy.networks.backbones.unet1d import UNet1dConfig


@pytest.fixture
def policy_of_unet_small(small_policy: DiffusionPolicy) -> DiffusionPolicy:
    """`small_policy` with the network of the default settings."""
    torch.manual_seed(0)
    policy = DiffusionPolicy(dataclasses.replace(small_policy.config, model=UNet1dConfig()))
    assert policy.config.model.widths == [32, 64, 128]
    share = torch.linspace(0.0, 1.0, 100)[:, None]
    policy.fit({"position": share.expand(-1, 3), "goal": share.expand(-1, 2)}, 10.0 * share.expand(-1, 2))
    return policy.eval()


class Recorder:
    """Stands in front of a policy and remembers what it was asked."""

    def __init__(self, policy: DiffusionPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
        self.observations: list[dict[str, torch.Tensor]] = []
        predict = policy.predict_action_chunk

        def predict_action_chunk(observation, *arguments):
            self.observations.append({key: value.clone() for key, value in observation.items()})
            return predict(observation, *arguments)

        monkeypatch.setattr(policy, "predict_action_chunk", predict_action_chunk)


def observation(tick: int, batch: int = 1) -> dict[str, np.ndarray]:
    return {
        "position": np.full((batch, 3), 0.01 * tick) + 0.1 * np.arange(batch)[:, None],
        "goal": np.full((batch, 2), 0.5),
    }


def run(controller: PolicyController, ticks: int, batch: int = 1) -> np.ndarray:
    return np.stack([controller.select_action(observation(tick, batch)) for tick in range(ticks)])


def test_it_plans_every_n_action_steps_from_the_last_observations(small_policy, monkeypatch) -> None:
    recorder = Recorder(small_policy, monkeypatch)
    controller = PolicyController(small_policy)
    controller.reset(seeds=[0])
    actions = run(controller, 20)
    assert actions.shape == (20, 1, 2)
    seen = [call["position"][0, :, 0].tolist() for call in recorder.observations]
    expected = [[0.0, 0.0], [0.07, 0.08], [0.15, 0.16]]  # the first observation stands for the one before it
    np.testing.assert_allclose(seen, expected, rtol=1e-6)


def test_actions_between_plans_are_read_off_the_chunk(small_policy, monkeypatch) -> None:
    controller = PolicyController(small_policy)
    controller.reset(seeds=[3])
    actions = run(controller, 8)[:, 0]
    first = {
        key: torch.as_tensor(value, dtype=torch.float32)[:, None].expand(-1, 2, -1)
        for key, value in observation(0).items()
    }
    chunk = small_policy.predict_action_chunk(first, [torch.Generator().manual_seed(3)])
    np.testing.assert_array_equal(actions, chunk.actions[0].numpy())


def test_the_same_seed_gives_the_same_episode_and_another_seed_another(small_policy) -> None:
    controller = PolicyController(small_policy)
    episodes = []
    for seed in (0, 0, 1):
        controller.reset(seeds=[seed])
        episodes.append(run(controller, 10))
    np.testing.assert_array_equal(episodes[0], episodes[1])
    assert np.abs(episodes[0] - episodes[2]).max() > 1e-2


@pytest.mark.parametrize("inference_batch", [16, 64])  # from 64 on, the network's own kernels
@pytest.mark.parametrize("policy", ["small_policy", "policy_of_unet_small"])
def test_an_episode_is_bit_equal_alone_or_among_others(request, policy: str, inference_batch: int) -> None:
    controller = PolicyController(request.getfixturevalue(policy), "ddim", 3, inference_batch=inference_batch)
    robots = inference_batch - 1
    controller.reset(seeds=list(range(robots)))
    among = run(controller, 20, robots)
    for slot in (0, 1, robots - 1):
        controller.reset(seeds=[slot])
        seen = [{key: value[[slot]] for key, value in observation(tick, robots).items()} for tick in range(20)]
        alone = np.concatenate([controller.select_action(row) for row in seen])
        np.testing.assert_array_equal(alone, among[:, slot])


def test_a_sampler_is_given_by_name_settings_or_itself(small_policy) -> None:
    settings = {"name": "ddim", "steps": 3}
    alike = [
        PolicyController(small_policy, "ddim", 3),
        PolicyController(small_policy, settings),
        PolicyController(small_policy, DdimConfig("ddim", steps=7), 3),
        PolicyController(small_policy, small_policy.sampler(settings)),
    ]
    for controller in alike:
        controller.reset(seeds=[0])
    episodes = [run(controller, 9) for controller in alike]
    assert all(np.array_equal(episodes[0], episode) for episode in episodes)
    with pytest.raises(ValueError, match="num_inference_steps 3 is for a sampler given by name or settings"):
        PolicyController(small_policy, small_policy.sampler(settings), 3)


def test_guidance_in_the_settings_of_the_sampler_is_applied(small_policy) -> None:
    assert PolicyController(small_policy, "ddim").guide is None
    assert PolicyController(small_policy, {"name": "ddim", "guidance": {"threshold": 0.9}}).guide is not None
    with pytest.raises(ValueError, match=r"guidance: weight 1\.0 needs a policy trained with"):
        PolicyController(small_policy, {"name": "ddim", "guidance": {"weight": 1.0}})


@pytest.mark.parametrize("seeds", [["one"], [0.5], [-1], 3, [None]])
def test_a_reset_with_wrong_seeds_is_refused_and_the_episode_continues(small_policy, seeds) -> None:
    controller, undisturbed = PolicyController(small_policy), PolicyController(small_policy)
    with pytest.raises(ValueError, match=r"reset: seeds are .* expected integers"):
        controller.reset(seeds)
    with pytest.raises(ValueError, match="call reset"):
        controller.select_action(observation(0))
    for one in (controller, undisturbed):
        one.reset(seeds=[0])
    with pytest.raises(ValueError, match="reset: seeds are"):
        controller.reset(seeds)
    np.testing.assert_array_equal(run(controller, 9), run(undisturbed, 9))


def test_an_inference_batch_below_one_is_refused(small_policy) -> None:
    with pytest.raises(ValueError, match="inference_batch 0 must be at least 1"):
        PolicyController(small_policy, inference_batch=0)


def test_an_observation_that_is_no_mapping_is_refused(small_policy) -> None:
    controller = PolicyController(small_policy)
    controller.reset(seeds=[0])
    with pytest.raises(ValueError, match=r"observation: is a ndarray, expected a mapping with the keys \['goal', 'pos"):
        controller.select_action(np.zeros((1, 5)))  # pyright: ignore[reportArgumentType]


def test_a_masked_reset_restarts_one_robot_and_leaves_the_other(small_policy) -> None:
    controller = PolicyController(small_policy, inference_batch=16)
    controller.reset(seeds=[0, 1])
    undisturbed = run(controller, 20, batch=2)
    controller.reset(seeds=[0, 1])
    first = run(controller, 5, batch=2)
    controller.reset(seeds=[7, 99], mask=np.array([True, False]))
    rest = np.stack([controller.select_action(observation(tick, 2)) for tick in range(5, 20)])
    np.testing.assert_array_equal(np.concatenate([first, rest])[:, 1], undisturbed[:, 1])
    controller.reset(seeds=[7])
    alone = np.stack([controller.select_action(observation(tick)) for tick in range(5, 20)])
    np.testing.assert_array_equal(rest[:, 0], alone[:, 0])


def test_safety_is_applied_to_the_actions(small_policy) -> None:
    controller = PolicyController(small_policy, constrain=lambda plan, row: plan.clamp(4.0, 4.1))
    controller.reset(seeds=[0])
    actions = run(controller, 10)
    assert actions.min() >= np.float32(4.0)
    assert actions.max() <= np.float32(4.1)


@over(
    "bad, message",
    [
        ({"position": np.zeros((1, 3))}, "keys are"),
        ({"position": np.zeros((1, 4)), "goal": np.zeros((1, 2))}, r"position has shape \[1, 4\], expected \[1, 3\]"),
        ({"position": np.zeros(3), "goal": np.zeros((1, 2))}, r"position has shape \[3\]"),
        ({"position": np.full((1, 3), np.nan), "goal": np.zeros((1, 2))}, "position has NaN"),
    ],
)
def test_a_bad_observation_is_refused_and_does_not_enter_the_history(small_policy, bad, message: str) -> None:
    controller = PolicyController(small_policy)
    controller.reset(seeds=[0])
    expected = run(controller, 12)
    controller.reset(seeds=[0])
    actions = []
    for tick in range(12):
        with pytest.raises(ValueError, match=message):
            controller.select_action(bad)
        actions.append(controller.select_action(observation(tick)))
    np.testing.assert_array_equal(np.stack(actions), expected)


def test_acting_before_a_reset_is_refused(small_policy) -> None:
    with pytest.raises(ValueError, match=r"call reset\(seeds\) before"):
        PolicyController(small_policy).select_action(observation(0))


def test_a_reset_of_another_batch_size_is_refused(small_policy) -> None:
    controller = PolicyController(small_policy)
    controller.reset(seeds=[0, 1])
    with pytest.raises(ValueError, match="expected 2 of each"):
        controller.reset(seeds=[0], mask=np.array([True]))
    with pytest.raises(ValueError, match="mask is int64, expected bool"):
        controller.reset(seeds=[0, 1], mask=np.array([0, 1]))
    with pytest.raises(ValueError, match="17 robots, expected at most inference_batch 16"):
        PolicyController(small_policy, inference_batch=16).reset(seeds=list(range(17)))
    with pytest.raises(ValueError, match="steps 101 must be between 1 and 100"):
        PolicyController(small_policy, "ddim", 101)
    with pytest.raises(ValueError, match="'ddimm' is unknown, expected one of"):
        PolicyController(small_policy, "ddimm")


def test_a_second_thread_is_refused_and_the_first_goes_on(small_policy, monkeypatch) -> None:
    controller, alone = PolicyController(small_policy), PolicyController(small_policy)
    for each in (controller, alone):
        each.reset(seeds=[0])
    expected = alone.select_action(observation(0))
    begun, refused = threading.Event(), threading.Event()
    predict = small_policy.predict_action_chunk

    def slow(*arguments):
        begun.set()
        assert refused.wait(60)
        return predict(*arguments)

    monkeypatch.setattr(small_policy, "predict_action_chunk", slow)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(controller.select_action, observation(0))
        assert begun.wait(60)
        for call in (lambda: controller.select_action(observation(1)), lambda: controller.reset([1])):
            with pytest.raises(RuntimeError, match="was called while another thread is using the same controller"):
                call()
        refused.set()
        np.testing.assert_array_equal(first.result(), expected)
