"""The controller with safety, in a simulated world: what is certified is clear, and nothing else is ever sent.

The policy is untrained: it proposes anything, mostly nonsense.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from dense_sampling import Demands
from one_case import over
from seams import CosineCodec
from world import (
    BEGIN,
    CONSTRAINTS,
    DEMANDS,
    DISC,
    PLANT,
    RADIUS,
    SAMPLERS,
    SERVO,
    WALL,
    both,
    observation,
    safety,
    start,
)

from diffpolicy import PolicyController
from diffpolicy.constraints.constraint import Quantity
from diffpolicy.constraints.planar.keep_out import BarrierDecrease, KeepOut
from diffpolicy.constraints.planar.obstacles import disc, together
from diffpolicy.constraints.plant import State
from diffpolicy.safety.settings import MODES
from diffpolicy.safety.surroundings import Surroundings


@over("sampler", SAMPLERS)
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_with_every_sampler_sends_only_what_is_clear(small_policy, mode: str, sampler: str) -> None:
    obstacles = both(together([DISC, WALL]))
    controller, world = start(small_policy, safety([*CONSTRAINTS[:2], CONSTRAINTS[3]], mode=mode), sampler=sampler)
    world.run(controller, 10, lambda tick: obstacles)
    assert world.certified.all()
    assert world.overstepped(replace(DEMANDS, command_step=None, command_acceleration=None), obstacles).max() <= 1e-9
    # Actions are float32: 5e-7 of positions of 10, over the period.
    assert world.overstepped(replace(DEMANDS, command_acceleration=None), obstacles).max() <= 1e-5
    assert all(not report.alarm.any() and report.cost_ms > 0 for report in world.reports)


@pytest.mark.parametrize("mode", ["clip", "last_half"])
def test_limits_of_accelerations_are_kept_too(small_policy, mode: str) -> None:
    obstacles = both(together([DISC, WALL]))
    controller, world = start(small_policy, safety(mode=mode))
    world.run(controller, 10, lambda tick: obstacles)
    assert world.certified.all()
    assert world.overstepped(DEMANDS, obstacles).max() <= 1e-4  # float32, over the period twice


@over("mode", MODES[2:])
def test_projection_lets_robots_move_where_nothing_is_certified_without_it(small_policy, mode: str) -> None:
    obstacles = both(together([DISC, WALL]))
    moved, limits = {}, [*CONSTRAINTS[:2], CONSTRAINTS[3]]
    for used in ("none", mode):
        controller, world = start(small_policy, safety(limits, mode=used))
        world.run(controller, 9, lambda tick: obstacles)
        moved[used] = np.abs(world.position - BEGIN).max()
    assert moved[mode] > 0.5
    assert moved["none"] < moved[mode]


def test_further_candidates_are_tried_where_the_first_is_not_certified(small_policy) -> None:
    rungs, obstacles = set(), both(disc(5.0, 5.0, 0.1))
    for seed in range(3):
        demanded = safety([KeepOut(RADIUS)], mode="none", candidates=4)
        controller, world = start(small_policy, demanded, seed=seed)
        world.run(controller, 9, lambda tick: obstacles)
        rungs |= {rung for report in world.reports for rung in report.rung}
        assert world.certified.all()
        assert world.overstepped(Demands(distance=RADIUS), obstacles).max() <= 1e-9
    assert "candidate" in rungs
    assert "plan" in rungs


def test_candidates_do_not_change_a_robot_that_needs_none(small_policy) -> None:
    actions = []
    for candidates in (1, 3):
        controller, world = start(small_policy, safety([], candidates=candidates))
        world.run(controller, 12, lambda tick: None)
        actions.append(np.stack(world.actions))
        assert set(world.rungs) == {"plan"}
    np.testing.assert_array_equal(actions[0], actions[1])


def test_without_constraints_nothing_is_changed(small_policy) -> None:
    controller, world = start(small_policy, safety([]))
    world.run(controller, 12, lambda tick: None)
    plain = PolicyController(small_policy, "ddim", 3)
    plain.reset([0, 1])
    expected = [plain.select_action(observation()) for _ in range(12)]
    np.testing.assert_allclose(np.stack(world.actions), np.stack(expected), rtol=0, atol=1e-4)  # to units and back


def test_a_bad_call_changes_nothing(small_policy) -> None:
    runs = []
    for is_disturbed in (False, True):
        controller, world = start(small_policy, safety([KeepOut(RADIUS)]))
        state = State(torch.tensor(BEGIN), 0 * torch.tensor(BEGIN))
        for tick in range(10):
            if is_disturbed:
                spoilt = {**observation(), "goal": np.zeros((2, 3))}
                with pytest.raises(ValueError, match="goal has shape"):
                    controller.select_action(spoilt, Surroundings(state, both(DISC), 0.1 * tick))
                with pytest.raises(ValueError, match="plant_state"):
                    controller.select_action(observation(), Surroundings(None, both(DISC), 0.1 * tick))
            world.run(controller, 1, lambda tick: both(DISC), time_s=0.1 * tick)
        runs.append(np.stack(world.actions))
    np.testing.assert_array_equal(runs[0], runs[1])


def test_a_masked_reset_forgets_one_robot_only(small_policy) -> None:
    controller, world = start(small_policy, safety())
    world.run(controller, 4, lambda tick: both(DISC))
    world.position, world.velocity = world.position.copy(), world.velocity.copy()
    world.position[1], world.velocity[1] = BEGIN[1], 0.0
    controller.reset([0, 1], np.array([False, True]))
    world.run(controller, 4, lambda tick: both(DISC))
    undisturbed, alone = start(small_policy, safety())
    alone.run(undisturbed, 8, lambda tick: both(DISC))
    np.testing.assert_allclose(np.stack(world.actions)[:, 0], np.stack(alone.actions)[:, 0], rtol=0, atol=1e-5)
    assert world.certified.all()


def test_obstacles_of_other_robots_raise(small_policy) -> None:
    controller, world = start(small_policy, safety())
    with pytest.raises(ValueError, match="for 1 robots, expected 2"):
        world.run(controller, 1, lambda tick: DISC)


def test_obstacles_without_safety_raise(small_policy) -> None:
    plain = PolicyController(small_policy)
    plain.reset([0, 1])
    with pytest.raises(ValueError, match="obstacles are given, but the controller has no safety"):
        plain.select_action(observation(), Surroundings(obstacles=both(DISC)))


@over(
    "other, message",
    [
        ({"mode": "always"}, "mode 'always' must be one of"),
        ({"candidates": 0}, "candidates 0"),
        ({"iterations": 0}, "iterations 0"),
        ({"slots": -1}, "slots -1"),
        ({"period_s": 0.2}, "period_s 0.2, but the plant's is 0.1"),
        ({"period_s": float("nan")}, "period_s nan must be finite"),
        ({"period_s": -0.1, "plant": None}, "period_s -0.1 must be finite"),
        ({"period_s": None, "plant": None}, "period_s is missing; give the seconds from command to command"),
    ],
)
def test_settings_that_contradict_themselves_raise(other, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        safety(**other)


def test_the_period_is_the_plants_unless_it_is_given() -> None:
    assert safety(period_s=None).tick_s == PLANT.period_s
    assert safety(period_s=0.25, plant=None).tick_s == 0.25


def test_what_the_controller_cannot_keep_safe_is_refused(small_policy) -> None:
    with pytest.raises(ValueError, match="needs a plant"):
        PolicyController(small_policy, safety=safety(plant=None))
    with pytest.raises(ValueError, match="cannot both be given"):
        PolicyController(small_policy, safety=safety(), constrain=lambda plan, row: plan)
    small_policy.codec = CosineCodec(2, small_policy.config.window.horizon)
    with pytest.raises(ValueError, match="encoded by CosineCodec, which has no metric"):
        PolicyController(small_policy, safety=safety())


class Fence:
    """A user's own constraint, as in the README: ten lines."""

    quantity = Quantity("motion")

    def __init__(self, x: float) -> None:
        self.x = x

    def prox(self, reference, scene):
        return lambda y: torch.cat([y[..., :1].clamp(max=self.x), y[..., 1:]], dim=-1)

    def margin(self, y, scene):
        return self.x - y[..., 0]


@over("mode", MODES)
def test_a_users_own_constraint_is_kept_in_every_mode(small_policy, mode: str) -> None:
    controller, world = start(small_policy, safety([Fence(4.0)], mode=mode), np.array([[3.0, 3.0]]))
    world.run(controller, 10, lambda tick: None)
    path = [SERVO.motion(SERVO.held(a[:, None], 1), *s)[0] for s, a in zip(world.states, world.actions, strict=True)]
    assert np.concatenate(path, axis=1)[..., 0].max() <= 4.0 + 1e-9
    assert world.certified.all()


def test_uncertified_plans_are_sent_only_where_that_is_asked_for(small_policy) -> None:
    controller, world = start(small_policy, safety(certify=False, mode="none"))
    world.run(controller, 10, lambda tick: both(DISC))
    assert not world.certified.any()
    plain = PolicyController(small_policy, "ddim", 3)
    plain.reset([0, 1])
    expected = [plain.select_action(observation()) for _ in range(10)]
    np.testing.assert_array_equal(np.stack(world.actions), np.stack(expected).astype(np.float64))


@over("constraint", [KeepOut(RADIUS), BarrierDecrease(0.5, RADIUS, acts_on="motion")])
def test_a_robot_without_obstacles_is_not_bothered(small_policy, constraint) -> None:
    for slots in (0, 6):
        controller, world = start(small_policy, safety([constraint], slots=slots))
        world.run(controller, 9, lambda tick: None)
        assert set(world.rungs) == {"plan"}
