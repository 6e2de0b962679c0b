"""What is measured around the robots goes through the controller as one value."""

import dataclasses

import numpy as np
import pytest
import torch
from one_case import over
from world import BEGIN, DISC, both, observation, safety, start

from diffpolicy.constraints.plant import State
from diffpolicy.evaluation.readings import Readings
from diffpolicy.safety.surroundings import Surroundings

MEASURED = State(torch.tensor(BEGIN), torch.zeros(2, 2, dtype=torch.float64))


def test_nothing_is_measured_by_default() -> None:
    assert dataclasses.astuple(Surroundings()) == (None, None, None)


def test_they_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Surroundings().time_s = 1.0  # pyright: ignore[reportAttributeAccessIssue]


def test_without_safety_surroundings_may_be_given_and_change_nothing(small_policy) -> None:
    actions = []
    for surroundings in (None, Surroundings(), Surroundings(MEASURED, time_s=3.0)):
        controller, _ = start(small_policy, None)
        actions.append([controller.select_action(observation(), surroundings) for _ in range(10)])
    np.testing.assert_array_equal(actions[0], actions[1])
    np.testing.assert_array_equal(actions[0], actions[2])


@over("demanded", [None, safety()])
def test_a_state_in_their_place_is_refused_by_name(small_policy, demanded) -> None:
    controller, _ = start(small_policy, demanded)
    with pytest.raises(ValueError, match="surroundings: is a State, expected Surroundings"):
        controller.select_action(observation(), MEASURED)  # pyright: ignore[reportArgumentType]


def test_readings_of_an_envs_info_give_all_three() -> None:
    readings, everyone = Readings(), np.array([True, True])
    assert dataclasses.astuple(readings.surroundings) == (None, None, None)
    slots = {"vertices": np.zeros((2, 1, 1, 2)), "radius": np.ones((2, 1)), "speed_bound": np.zeros((2, 1))}
    info = {"agent_position": BEGIN, "agent_velocity": 0 * BEGIN, "time_s": np.array([0.1, 0.2])}
    readings.update({**info, "obstacles": {**slots, "mask": np.ones((2, 1), dtype=bool)}}, everyone)
    found = readings.surroundings
    assert found.plant_state is not None
    assert found.obstacles is not None
    np.testing.assert_array_equal(found.plant_state.position, BEGIN)
    np.testing.assert_array_equal(found.time_s, [0.1, 0.2])
    assert found.obstacles.slots == 1


def test_the_layer_is_told_all_three(small_policy) -> None:
    controller, _ = start(small_policy, safety())
    controller.select_action(observation(), Surroundings(MEASURED, both(DISC), 5.0))
    assert controller._layer is not None
    assert bool(controller._layer._obstacles.is_used[:, 0].all())
    np.testing.assert_array_equal(controller._layer._memory.start.state.position, BEGIN)
    with pytest.raises(ValueError, match="time_s"):
        controller.select_action(observation(), Surroundings(MEASURED, both(DISC), 4.9))
