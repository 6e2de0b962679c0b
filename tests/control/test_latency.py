"""Planning takes time: it is told, measured before a run, and a plan that takes too long is late."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from one_case import over
from world import BEGIN, DISC, PLANT, RADIUS, World, both, observation, safety

from diffpolicy import PolicyController
from diffpolicy.constraints.assumptions import Assumptions
from diffpolicy.constraints.planar.keep_out import KeepOut
from diffpolicy.constraints.plant import State
from diffpolicy.control.latency import measure_latency
from diffpolicy.safety.surroundings import Surroundings

LATENCY_S = 0.02
DECLARED = Assumptions(rest_speed=0.05, delay_substeps=1, latency_s=LATENCY_S)


class Clock:
    """Every look takes `seconds[i]` in the i-th call of the controller, 0.001 afterwards."""

    def __init__(self, seconds: dict[int, float]) -> None:
        self.seconds, self.call, self.now = seconds, -1, 50.0

    def __call__(self) -> float:
        self.now += self.seconds.get(self.call, 0.001)
        return self.now


def run(policy, assumptions: Assumptions, seconds: dict[int, float], ticks: int = 20) -> World:
    demanded = safety([KeepOut(RADIUS, inset=0.3)], assumptions=assumptions)
    clock = Clock(seconds)
    controller = PolicyController(policy, "ddim", 3, safety=demanded, clock=clock)
    controller.reset([0, 1])
    world = World(BEGIN.copy(), 0.0 * BEGIN)
    for tick in range(ticks):
        clock.call = tick
        world.run(controller, 1, lambda tick: both(DISC))
    return world


@over("late", [0, 3, 8, 11])
def test_a_late_plan_is_told_and_its_robots_are_left_with_their_last_commands(small_policy, late: int) -> None:
    """At the first tick, in the middle of a chunk, and when the next one is planned."""
    world = run(small_policy, DECLARED, {late: 0.03})
    expected = np.stack([BEGIN, *world.actions])[late]
    np.testing.assert_allclose(world.actions[late], expected, rtol=1e-6)
    report = world.reports[late]
    assert report.is_late
    assert report.planning_ms == pytest.approx(60.0)
    assert report.rung.tolist() == ["stored"] * 2
    assert report.certified.all()
    assert not report.alarm.any()
    assert all("plan: took 30 ms, expected at most 20 ms (latency_s)" in why for why in report.reason)
    others = [one for tick, one in enumerate(world.reports) if tick != late]
    assert not any(one.is_late for one in others)
    assert {rung for one in others for rung in one.rung} <= {"plan", "prefix", "slower"}
    assert np.abs(world.position - BEGIN).max() > 1.0  # they go on


def test_plans_that_are_always_late_move_nothing_and_it_is_told(small_policy) -> None:
    world = run(small_policy, DECLARED, dict.fromkeys(range(20), 0.03))
    np.testing.assert_allclose(world.position, BEGIN, rtol=1e-6)
    assert world.reports[-1].stuck_ticks.tolist() == [20, 20]


def test_where_no_latency_is_declared_time_stands_still_while_plans_are_made(small_policy) -> None:
    slow = run(small_policy, replace(DECLARED, latency_s=0.0), dict.fromkeys(range(20), 9.0))
    fast = run(small_policy, replace(DECLARED, latency_s=0.0), {})
    np.testing.assert_array_equal(np.stack(slow.actions), np.stack(fast.actions))
    assert not any(report.is_late for report in slow.reports)
    assert slow.reports[0].planning_ms == pytest.approx(18_000.0)


@over("candidates", [1, 3])
def test_the_latency_is_that_of_plans_with_all_candidates(small_policy, monkeypatch, candidates: int) -> None:
    rows, predict = [], small_policy.predict_action_chunk

    def predict_action_chunk(seen, generators, *arguments):
        rows.append(len(generators))
        return predict(seen, generators, *arguments)

    monkeypatch.setattr(small_policy, "predict_action_chunk", predict_action_chunk)
    controller = PolicyController(small_policy, "ddim", 1, safety=safety([KeepOut(RADIUS)], candidates=candidates))
    surroundings = Surroundings(State(torch.tensor(BEGIN), torch.zeros(2, 2)), both(DISC))
    assert measure_latency(controller, observation(), surroundings, plans=4) > 0.0
    assert rows == ([2] if candidates == 1 else [2, 4]) * 5
    controller.reset([0, 1])
    rows.clear()
    controller.select_action(observation(), surroundings)
    assert rows != [2, 4]  # and no longer for robots that need none


def test_a_plan_cannot_be_measured_less_than_once(small_policy) -> None:
    controller = PolicyController(small_policy, "ddim", 1, safety=safety([], plant=PLANT))
    with pytest.raises(ValueError, match="plans 0 must be at least 1"):
        measure_latency(controller, observation(), plans=0)
