"""Safety with a policy that sees: obstacles are reported beside the images, and a camera that fails stops one robot."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from one_case import over
from world import BEGIN, CONSTRAINTS, DEMANDS, DISC, World, both, safety, start

from diffpolicy import DiffusionPolicy, PolicyConfig, PolicyController
from diffpolicy.constraints.plant import State
from diffpolicy.networks.backbones.unet1d import UNet1dConfig
from diffpolicy.networks.encoders.resnet import ResnetConfig
from diffpolicy.networks.observation import ObservationSpec, vector
from diffpolicy.safety.surroundings import Surroundings

SEES = {"top": ObservationSpec("image", (12, 12, 3)), "wrist": ObservationSpec("image", (8, 10, 3)), "state": vector(2)}
TICKS, BAD = 14, range(5, 7)


@pytest.fixture(scope="module")
def policy() -> DiffusionPolicy:
    """An untrained policy with two cameras, a state in [0, 10] and actions in [0, 10]."""
    torch.manual_seed(0)
    model, encoder = UNet1dConfig(widths=[16, 32], time_embedding_dim=16), ResnetConfig(pool="average")
    made = DiffusionPolicy(PolicyConfig(SEES, 2, model=model, encoder=encoder))
    share = 10.0 * torch.linspace(0.0, 1.0, 100)[:, None].expand(-1, 2)
    made.fit({"state": share}, share)
    return made.eval()


def frames(tick: int, key: str) -> np.ndarray:
    """What two robots see, [2, height, width, 3]."""
    return np.random.default_rng(tick).integers(0, 256, (2, *SEES[key].shape), dtype=np.uint8)


def run(controller: PolicyController, failure: Any = None) -> World:
    """Both robots for `TICKS` ticks beside a disc that only safety knows; one camera of the second fails in `BAD`."""
    world = World(BEGIN.copy(), 0.0 * BEGIN)
    for tick in range(TICKS):
        seen: dict[str, Any] = {key: frames(tick, key) for key in ("top", "wrist")}
        if tick in BAD and failure is not None:
            seen["wrist"] = failure(seen["wrist"])
        state = State(torch.tensor(world.position), torch.tensor(world.velocity))
        action = controller.select_action({**seen, "state": world.position}, Surroundings(state, both(DISC)))
        world.keep(controller, action)
    return world


def test_every_action_of_a_policy_that_sees_is_certified_and_clear_of_what_it_does_not_see(policy) -> None:
    controller, _ = start(policy, safety([*CONSTRAINTS[:2], CONSTRAINTS[3]], candidates=2))
    world = run(controller)
    assert world.certified.all()
    assert (
        world.overstepped(replace(DEMANDS, command_acceleration=None), both(DISC)).max() <= 1e-5
    )  # float32 actions of up to 10, over the period
    assert not any(report.alarm.any() for report in world.reports)


def dark(images: np.ndarray) -> list[np.ndarray | None]:
    return [images[0], None]


def not_a_number(images: np.ndarray) -> np.ndarray:
    spoilt = images.astype(np.float32)
    spoilt[1, 3, 4, 0] = np.nan
    return spoilt


@over("failure, why", {"missing": (dark, "wrist is None"), "NaN": (not_a_number, "wrist has NaN")})
def test_a_robot_whose_camera_fails_holds_with_an_alarm_and_the_other_goes_on(policy, failure: Any, why: str) -> None:
    controller, _ = start(policy, safety([*CONSTRAINTS[:2], CONSTRAINTS[3]], mode="clip"))
    expected = run(controller)
    controller.reset([0, 1])
    world = run(controller, failure)
    np.testing.assert_allclose(np.stack(world.actions)[:, 0], np.stack(expected.actions)[:, 0], rtol=0, atol=1e-4)
    for tick, report in enumerate(world.reports):
        assert report.alarm.tolist() == [False, tick in BAD]
        assert report.reason[1].startswith(f"observation: {why}") == (tick in BAD)
        assert report.certified[0]
    assert np.ptp(np.stack(world.actions)[BAD.start : BAD.stop, 1], axis=0).max() <= 1e-5  # it stands
    assert world.reports[-1].rung[1] in ("plan", "prefix", "slower")
