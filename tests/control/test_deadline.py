"""The number of steps of each plan follows from the deadline and from what calls of the policy take."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from diffpolicy import PolicyController
from diffpolicy.diffusion.samplers.ancestral import DdimConfig

FIXED_S, STEP_S = 0.004, 0.001  # of a call of the policy, by the clock of these tests


class Machine:
    """A clock that only calls of the policy advance: by a fixed time, one for each evaluation, and `further`."""

    def __init__(self, policy, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.further, self.rows = 0.0, 0.0, []
        predict = policy.predict_action_chunk

        def predict_action_chunk(observation, generators, sampler, *others, **more):
            self.now += FIXED_S + STEP_S * len(sampler) + self.further
            self.rows.append(len(sampler))
            return predict(observation, generators, sampler, *others, **more)

        monkeypatch.setattr(policy, "predict_action_chunk", predict_action_chunk)

    def __call__(self) -> float:
        return self.now


def seen(robots: int = 1) -> dict[str, np.ndarray]:
    return {"position": np.full((robots, 3), 0.1), "goal": np.full((robots, 2), 0.5)}


def plan(controller: PolicyController, count: int = 1) -> None:
    """Tick until `count` more plans are made."""
    for _ in range(count * controller.policy.config.window.n_action_steps):
        controller.select_action(seen())


@pytest.mark.parametrize(
    ("deadline_ms", "steps"), [(14.5, 10), (14.0 - 1e-6, 8), (10.5, 6), (9.5, 5), (5.5, 1), (1000.0, 10)]
)
def test_the_most_steps_that_fit_are_taken(small_policy, monkeypatch, deadline_ms: float, steps: int) -> None:
    machine = Machine(small_policy, monkeypatch)
    controller = PolicyController(small_policy, "ddim", 10, clock=machine, deadline_ms=deadline_ms)
    controller.reset([0])
    assert controller.deadline is not None
    assert {*controller.deadline.costs_ms} == {1, 2, 3, 4, 5, 6, 8, 10}
    assert controller.deadline.costs_ms[8] == pytest.approx(12.0)
    machine.rows.clear()
    plan(controller, 2)
    assert machine.rows == [steps, steps]
    assert (controller.deadline.steps, controller.deadline.missed) == (steps, 0)


def test_the_plan_is_the_one_that_so_many_steps_make(small_policy, monkeypatch) -> None:
    machine = Machine(small_policy, monkeypatch)
    controller = PolicyController(small_policy, "ddim", 10, clock=machine, deadline_ms=9.5)
    plain = PolicyController(small_policy, "ddim", 5)
    for each in (controller, plain):
        each.reset([3])
    np.testing.assert_array_equal(controller.select_action(seen()), plain.select_action(seen()))


def test_a_machine_that_becomes_slower_gets_fewer_steps_and_later_as_many_again(small_policy, monkeypatch) -> None:
    machine = Machine(small_policy, monkeypatch)
    controller = PolicyController(small_policy, "ddim", 10, clock=machine, deadline_ms=15.5)
    controller.reset([0])
    machine.rows.clear()
    machine.further = 0.005
    plan(controller, 2)
    machine.further = 0.0
    plan(controller, 21)
    assert machine.rows == [10, 6] + 20 * [6] + [10]
    assert controller.deadline is not None
    assert controller.deadline.missed == 1, "the first plan on the slower machine"


def test_a_deadline_that_cannot_be_met_is_told_once(small_policy, monkeypatch) -> None:
    machine = Machine(small_policy, monkeypatch)
    controller = PolicyController(small_policy, "ddim", 10, clock=machine, deadline_ms=2.0)
    controller.reset([0])
    with pytest.warns(RuntimeWarning, match=r"deadline of 2 ms is shorter than a plan of 1 steps, which takes 5\.0 ms"):
        plan(controller, 3)
    assert controller.deadline is not None
    assert (controller.deadline.steps, controller.deadline.missed) == (1, 3)


def test_a_warm_start_has_fewer_rows_than_the_steps_chosen(small_policy, monkeypatch) -> None:
    machine = Machine(small_policy, monkeypatch)
    settings = DdimConfig(steps=10, warm_start=5)
    controller = PolicyController(small_policy, settings, clock=machine, deadline_ms=8.5)
    controller.reset([0])
    machine.rows.clear()
    plan(controller, 2)
    assert machine.rows == [4, 3]


def test_the_batch_that_is_measured_is_the_one_that_is_planned_for(small_policy, monkeypatch) -> None:
    sizes = []
    predict = small_policy.predict_action_chunk

    def predict_action_chunk(observation, generators, *others, **more):
        sizes.append(len(generators))
        return predict(observation, generators, *others, **more)

    monkeypatch.setattr(small_policy, "predict_action_chunk", predict_action_chunk)
    PolicyController(small_policy, "ddim", 2, deadline_ms=1e6).reset([0, 1, 2])
    assert set(sizes) == {3}
    sizes.clear()
    PolicyController(small_policy, "ddim", 2, deadline_ms=1e6, inference_batch=16).reset([0, 1, 2])
    assert set(sizes) == {16}


@pytest.mark.parametrize("deadline_ms", [0.0, -1.0, float("nan"), float("inf")])
def test_a_deadline_is_above_0(small_policy, deadline_ms: float) -> None:
    with pytest.raises(ValueError, match=r"deadline_ms .* must be above 0"):
        PolicyController(small_policy, deadline_ms=deadline_ms)


def test_a_sampler_with_steps_of_its_own_has_no_deadline(small_policy) -> None:
    with pytest.raises(ValueError, match="deadline_ms is for a sampler given by name"):
        PolicyController(small_policy, small_policy.sampler("ddim"), deadline_ms=10.0)


def test_step_counts_that_a_policy_was_not_trained_for_are_left_out(small_policy, monkeypatch) -> None:
    sampling = small_policy.sampling

    def only_even(choice, steps=None):
        found = sampling(choice, steps)
        if found.settings.steps % 2:
            raise ValueError("trained for even numbers of steps")
        return replace(found)

    monkeypatch.setattr(small_policy, "sampling", only_even)
    controller = PolicyController(small_policy, "ddim", 10, deadline_ms=1e6)
    controller.reset([0])
    assert controller.deadline is not None
    assert {*controller.deadline.costs_ms} == {2, 4, 6, 8, 10}
    assert torch.isfinite(torch.from_numpy(controller.select_action(seen()))).all()
