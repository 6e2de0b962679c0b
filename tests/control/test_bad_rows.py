"""Whatever one robot is told, the others go on as if nothing had happened, and it stops with an alarm."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from one_case import over
from world import BEGIN, CONSTRAINTS, DISC, PERIOD_S, RADIUS, World, both, observation, safety, start

from diffpolicy import PolicyController
from diffpolicy.constraints.constraint import Quantity
from diffpolicy.constraints.planar.keep_out import KeepOut
from diffpolicy.constraints.planar.obstacles import Obstacles, together
from diffpolicy.constraints.plant import State
from diffpolicy.safety.report import PlanReport
from diffpolicy.safety.surroundings import Surroundings

BAD_FROM, BAD_UNTIL, TICKS = 5, 7, 18
Told = tuple[dict[str, np.ndarray], State, Obstacles, list[float]]


def obstacles_with(part: str, value: float) -> Callable[[Told], Told]:
    def spoil(told: Told) -> Told:
        numbers = getattr(told[2], part).clone()
        numbers[1] = value
        return told[0], told[1], replace(told[2], **{part: numbers}), told[3]

    return spoil


def a_seventh_obstacle(told: Told) -> Told:
    many = together([told[2]] * 7)
    is_used = many.is_used.clone()
    is_used[0, 1:] = False
    return told[0], told[1], replace(many, is_used=is_used), told[3]


def observation_of(value: float) -> Callable[[Told], Told]:
    def spoil(told: Told) -> Told:
        seen = {key: part.copy() for key, part in told[0].items()}
        seen["goal"][1, 0] = value
        return seen, *told[1:]

    return spoil


def time_of(seconds: float) -> Callable[[Told], Told]:
    return lambda told: (*told[:3], [told[3][0], seconds])


BAD = {
    "a vertex beyond float32": (obstacles_with("vertices", 1e39), "obstacles: slot 0"),
    "a radius as large as float32 goes": (obstacles_with("radius", 3e38), "obstacles: slot 0"),
    "a negative speed": (obstacles_with("speed", -1.0), "obstacles: slot 0"),
    "an infinite vertex": (obstacles_with("vertices", np.inf), "obstacles: slot 0"),
    "a seventh obstacle": (a_seventh_obstacle, "obstacles: 7 given, expected at most 6"),
    "NaN in the observation": (observation_of(np.nan), "observation: goal has NaN"),
    "an observation that overflows in the network": (observation_of(3e38), "policy: the plan has NaN"),
    "a time before the last": (time_of(-1.0), "time_s"),
    "NaN for a time": (time_of(np.nan), "time_s"),
}


def run(controller: PolicyController, spoil: Callable[[Told], Told], bad: range) -> tuple[World, list[PlanReport]]:
    world = World(BEGIN.copy(), 0.0 * BEGIN)
    for tick in range(TICKS):
        state = State(torch.tensor(world.position), torch.tensor(world.velocity))
        told: Told = (observation(), state, both(DISC), [PERIOD_S * tick] * 2)
        seen, state, obstacles, time_s = spoil(told) if tick in bad else told
        action = controller.select_action(seen, Surroundings(state, obstacles, time_s))
        world.keep(controller, action)
    return world, world.reports


@over("name", [*BAD])
def test_one_robots_bad_row_stops_that_robot_only(small_policy, name: str) -> None:
    spoil, why = BAD[name]
    bad = range(8, 9) if "overflows" in name else range(BAD_FROM, BAD_UNTIL)  # only a plan looks at the observation
    controller, _ = start(small_policy, safety([KeepOut(RADIUS)], mode="clip"))
    expected, _ = run(controller, spoil, range(0))
    controller.reset([0, 1])
    world, reports = run(controller, spoil, bad)
    np.testing.assert_allclose(np.stack(world.actions)[:, 0], np.stack(expected.actions)[:, 0], rtol=0, atol=1e-4)
    for tick, report in enumerate(reports):
        assert report.alarm.tolist() == [False, tick in bad], (tick, report)
        assert report.reason[1].startswith(why) == (tick in bad)
        assert bool(report.reason[0] == "")
    stopped = np.stack(world.actions)[bad.start : bad.stop, 1]
    before = np.stack(world.actions)[bad.start - 1, 1]
    np.testing.assert_allclose(stopped, np.broadcast_to(before, stopped.shape), rtol=0, atol=1e-5)
    assert reports[-1].rung[1] in ("plan", "prefix", "slower")  # it goes on when its rows are good again


def test_a_robot_whose_position_was_never_received_is_told_nothing_and_begins_when_it_is(small_policy) -> None:
    controller, _ = start(small_policy, safety())
    world = World(BEGIN.copy(), 0.0 * BEGIN)

    def lost(told: Told) -> Told:
        position = told[1].position.clone()
        position[1] = torch.nan
        return told[0], State(position, told[1].velocity), *told[2:]

    for tick in range(12):
        state = State(torch.tensor(world.position), torch.tensor(world.velocity))
        told: Told = (observation(), state, both(DISC), [PERIOD_S * tick] * 2)
        seen, state, obstacles, time_s = lost(told) if tick < 3 else told
        action = controller.select_action(seen, Surroundings(state, obstacles, time_s))
        assert np.isnan(action[1]).all() == (tick < 3)
        assert np.isfinite(action[0]).all()
        world.keep(controller, np.where(np.isnan(action), world.position, action).astype(np.float32))
        report = world.reports[-1]
        assert report.alarm.tolist() == [False, tick < 3]
        assert report.certified.tolist() == [True, tick >= 3]
        if tick < 3:
            assert report.reason[1].startswith("plant_state: not received since the episode began")
    assert np.abs(world.position[1] - BEGIN[1]).max() > 0.1


class Fragile:
    """Raises where any row of any robot is right of x = 7, in its prox, its projection or its margin."""

    quantity = Quantity("motion")

    def __init__(self, where: str) -> None:
        self.where = where

    def prox(self, reference, scene):
        self.check("prox", reference)
        return lambda y: (self.check("projection", y), y)[1]

    def margin(self, y, scene):
        self.check("margin", y)
        return 100.0 + 0.0 * y[..., 0]

    def check(self, where: str, y: torch.Tensor) -> None:
        if where == self.where and bool((y[..., 0] > 7.0).any()):
            raise ZeroDivisionError("right of 7")


@over("where", ["prox", "projection", "margin"])
def test_a_users_constraint_that_raises_for_one_robot_stops_no_other(small_policy, where: str) -> None:
    """The second robot starts right of 7, the first one goes there only after a while."""
    controller, world = start(small_policy, safety([*CONSTRAINTS[:1], Fragile(where)]))
    world.run(controller, 4, lambda tick: None)
    for report in world.reports:
        assert report.certified.tolist() == [True, where != "margin"]
        assert report.alarm.tolist() == [False, where == "margin"]
        if where == "margin":
            assert report.reason[1] == "margin of Fragile raised ZeroDivisionError: right of 7"
