"""A wrapper forwards everything that it does not override."""

import numpy as np
from one_case import over

from diffpolicy.control.protocol import Controller
from diffpolicy.control.wrapper import ControllerWrapper
from diffpolicy.safety.surroundings import Surroundings


class Inner:
    """A controller that remembers its calls."""

    policy, safety, last_plan = "policy", "safety", "report"

    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def reset(self, seeds, mask=None) -> None:
        self.calls.append(("reset", seeds, mask))

    def select_action(self, observation, surroundings=None) -> np.ndarray:
        self.calls.append(("select_action", observation, surroundings))
        return np.float32([[len(self.calls)]])


class Doubled(ControllerWrapper):
    """Overrides one thing."""

    def select_action(self, observation, surroundings=None) -> np.ndarray:
        return 2 * super().select_action(observation, surroundings)


@over("depth", [1, 2])
def test_everything_reaches_the_controller_and_comes_back(depth: int) -> None:
    inner = controller = Inner()
    for _ in range(depth):
        controller = ControllerWrapper(controller)
    assert (controller.policy, controller.safety, controller.last_plan) == ("policy", "safety", "report")
    inner.last_plan = "another"
    assert controller.last_plan == "another"
    mask, seen, near = np.array([True]), {"key": np.zeros((1, 2))}, Surroundings(time_s=1.0)
    controller.reset([3])
    controller.reset([4], mask)
    assert controller.select_action(seen).tolist() == [[3.0]]
    controller.select_action(seen, near)
    assert inner.calls[:2] == [("reset", [3], None), ("reset", [4], mask)]
    assert inner.calls[2] == ("select_action", seen, None)
    assert inner.calls[3][2] is near


def test_it_has_all_that_a_rollout_asks_for() -> None:
    names = {name for name in vars(Controller) if not name.startswith("_")}
    assert names == {"policy", "safety", "last_plan", "reset", "select_action"}
    assert names <= set(dir(ControllerWrapper))


def test_a_subclass_overrides_what_it_changes() -> None:
    controller = Doubled(Inner())
    controller.reset([0])
    assert controller.select_action({}).tolist() == [[4.0]]
    assert controller.safety == "safety"


def test_around_a_policy_controller_it_changes_nothing(small_policy) -> None:
    from diffpolicy import PolicyController

    actions = []
    for wrap in (lambda inner: inner, ControllerWrapper):
        controller = wrap(PolicyController(small_policy, "ddim", 2))
        controller.reset([0])
        seen = {"position": np.full((1, 3), 0.1), "goal": np.full((1, 2), 0.5)}
        actions.append(np.stack([controller.select_action(seen) for _ in range(9)]))
    np.testing.assert_array_equal(*actions)
