"""What the controller does not expect: starts inside obstacles, missing states, pushes, late calls, NaN."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from dense_sampling import Demands, violation
from one_case import over
from world import (
    BEGIN,
    CONSTRAINTS,
    DEMANDS,
    DISC,
    PERIOD_S,
    PLANT,
    RADIUS,
    SERVO,
    WALL,
    both,
    observation,
    safety,
    solids,
    start,
)

from diffpolicy.constraints.assumptions import Assumptions
from diffpolicy.constraints.planar.keep_out import KeepOut
from diffpolicy.constraints.planar.obstacles import disc, no_obstacles, polygon, together
from diffpolicy.constraints.plant import State
from diffpolicy.safety.surroundings import Surroundings


@over("constraint", [KeepOut(RADIUS), KeepOut(RADIUS, acts_on="commands")])
def test_a_robot_that_starts_inside_an_obstacle_holds_and_raises_the_alarm(small_policy, constraint) -> None:
    begin = np.array([[3.0, 3.0], [6.6, 6.5]])  # the second one in the disc
    controller, world = start(small_policy, safety([constraint]), begin)
    world.run(controller, 12, lambda tick: both(DISC))
    for report in world.reports:
        assert report.rung[1] == "hold"
        assert report.alarm.tolist() == [False, True]
        assert report.certified.tolist() == [True, False]
        assert report.margin[1] < 0
    np.testing.assert_allclose(np.stack(world.actions)[:, 1], np.tile(begin[1], (12, 1)), rtol=1e-7)


def test_an_obstacle_that_appears_in_the_middle_of_a_chunk_is_heeded(small_policy) -> None:
    """Wherever it appears, every action that is still called certified is clear of it; else there is an alarm."""
    seen = set()
    for seed in range(2):
        for x in (2.0, 3.4, 5.0):
            controller, world = start(small_policy, safety(CONSTRAINTS[:1] + CONSTRAINTS[3:]), seed=seed)
            world.run(controller, 3, lambda tick: both(no_obstacles(1)))
            appeared = both(together([disc(x, 4.0, 0.4), polygon([(7.0, x), (9.0, x)])]))
            world.run(controller, 7, lambda tick, appeared=appeared: appeared)
            over = world.overstepped(replace(DEMANDS, command_step=None, command_acceleration=None), appeared)
            certified = world.certified
            assert over[3:][certified[3:]].max(initial=-1.0) <= 1e-9
            alarms = np.stack([report.alarm for report in world.reports])
            assert (alarms == ~certified).all()
            seen |= set(np.unique(certified[3:]).tolist())
    assert seen == {True, False}  # both happen


def test_a_way_to_stop_certified_before_an_obstacle_appeared_is_not_called_certified(small_policy) -> None:
    """At full speed towards a wall that appears just ahead, no stop is left, whatever was stored."""
    controller, world = start(small_policy, safety([KeepOut(RADIUS)]), np.array([[1.0, 5.0]]), seed=1)
    world.run(controller, 2, lambda tick: no_obstacles(1))
    heading = world.velocity[0] / np.linalg.norm(world.velocity[0])
    assert np.linalg.norm(world.velocity[0]) > 5.0
    across = np.array([-heading[1], heading[0]])
    middle = world.position[0] + 0.3 * heading
    wall = polygon([tuple((middle - 5 * across).tolist()), tuple((middle + 5 * across).tolist())])
    world.run(controller, 1, lambda tick: wall)
    assert world.rungs[-1] == "hold"
    assert world.reports[-1].alarm.all()
    assert not world.certified[-1].any()


def nan_at(ticks: set[int]) -> Callable[[int, State], State]:
    def measured(tick: int, state: State) -> State:
        return State(state.position * np.nan, state.velocity * np.nan) if tick in ticks else state

    return measured


def test_without_a_measured_state_the_stored_way_to_stop_is_followed(small_policy) -> None:
    obstacles = both(together([DISC, WALL]))
    controller, world = start(small_policy, safety())
    world.run(controller, 20, lambda tick: obstacles, nan_at(set(range(4, 14))))
    assert world.rungs[4:14] == ["stored"] * 10
    assert world.certified.all()  # by the certificate of tick 3
    assert world.overstepped(replace(DEMANDS, command_step=None, command_acceleration=None), obstacles).max() <= 1e-9
    assert np.abs(np.diff(np.stack(world.actions)[8:14], axis=0)).max() < 2.0
    assert np.linalg.norm(world.states[13][1], axis=-1).max() < 0.05  # they came to rest
    assert "stored" not in world.rungs[14:]  # and go on when the state is back


def test_a_robot_that_was_pushed_while_its_state_was_unknown_does_not_count_as_expected(small_policy) -> None:
    controller, world = start(small_policy, safety([KeepOut(RADIUS)]), np.array([[3.0, 3.0]]))
    world.run(controller, 6, lambda tick: DISC, nan_at({3, 4, 5}))
    world.position = np.array([[6.5, 5.2]])  # thrown towards the disc, too fast to stop
    world.velocity = np.array([[0.0, 60.0]])
    world.run(controller, 1, lambda tick: DISC)
    assert world.rungs[-1] == "hold"
    assert world.reports[-1].alarm.all()


@over("part", ["vertices", "radius", "speed"])
def test_nan_obstacles_are_never_passed(small_policy, part: str) -> None:
    spoilt = replace(both(DISC), **{part: getattr(both(DISC), part) * np.nan})
    controller, world = start(small_policy, safety())
    world.run(controller, 3, lambda tick: both(DISC)).run(controller, 3, lambda tick: spoilt)
    assert set(world.rungs[3:]) == {"stored"}
    fresh, nothing = start(small_policy, safety())
    nothing.run(fresh, 2, lambda tick: spoilt)
    assert set(nothing.rungs) == {"hold"}
    assert not nothing.certified.any()


def test_a_slot_of_nan_does_not_hide_what_another_slot_shows(small_policy) -> None:
    """A wall appears just ahead of a fast robot, and at the same tick an obstacle far away is not measured."""
    controller, world = start(small_policy, safety([KeepOut(RADIUS)]), np.array([[1.0, 5.0]]), seed=1)
    far = disc(9.0, 9.0, 0.2)
    world.run(controller, 2, lambda tick: far)
    heading = world.velocity[0] / np.linalg.norm(world.velocity[0])
    across, middle = np.array([-heading[1], heading[0]]), world.position[0] + 0.3 * heading
    wall = polygon([tuple((middle - 5 * across).tolist()), tuple((middle + 5 * across).tolist())])
    world.run(controller, 1, lambda tick: together([replace(far, radius=far.radius * np.nan), wall]))
    assert world.rungs[-1] == "hold"
    assert world.reports[-1].alarm.all()


@over("now, rung", [((True, True), "stored"), ((False, True), "stored"), ((True, True, True), "hold")])
def test_what_was_not_measured_is_one_of_those_that_were_there(small_policy, now, rung: str) -> None:
    """A slot of NaN is one of the obstacles before; one more than before may be anywhere. `now`: the slots in use."""
    controller, world = start(small_policy, safety([KeepOut(RADIUS)]), np.array([[3.0, 3.0]]))
    world.run(controller, 3, lambda tick: together([disc(9.0, 9.0, 0.2), disc(9.0, 1.0, 0.2)]))
    seen = together([disc(9.0, 9.0, 0.2)] * len(now))
    nan = torch.tensor([[i > 0 for i in range(len(now))]])
    seen = replace(seen, radius=torch.where(nan, torch.nan, seen.radius), is_used=torch.tensor([now]))
    world.run(controller, 1, lambda tick: seen)
    assert world.rungs[-1] == rung


def test_an_obstacle_that_is_not_measured_for_long_is_an_alarm(small_policy) -> None:
    controller, world = start(small_policy, safety([KeepOut(RADIUS)]), np.array([[3.0, 3.0]]))
    world.run(controller, 3, lambda tick: DISC)
    world.run(controller, 30, lambda tick: replace(DISC, radius=DISC.radius * np.nan))
    alarms = [bool(report.alarm[0]) for report in world.reports[3:]]
    assert not alarms[0]
    assert alarms[-1]
    assert "slots [0]" in str(world.reports[-1].reason[0])


def test_an_obstacle_seen_as_nan_in_between_may_have_moved_on_meanwhile(small_policy) -> None:
    """A stored way to stop outlasts a blind tick if the obstacle keeps to its speed, and not if it jumps."""
    for jump, rung in ((0.05, "stored"), (1.0, "hold")):
        controller, world = start(small_policy, safety([KeepOut(RADIUS)]))
        near = [both(disc(4.6 + shift, 3.0, 1.0, speed=0.4)) for shift in (0.0, jump)]
        blind = replace(near[0], vertices=near[0].vertices * np.nan)
        seen = [near[0], near[0], near[0], blind, near[1], blind]
        world.run(controller, 6, lambda tick, seen=seen: seen[tick], nan_at({3, 4, 5}))
        assert world.rungs[-1] == rung


def test_a_state_that_is_missing_at_the_start_raises(small_policy) -> None:
    controller, _ = start(small_policy, safety())
    with pytest.raises(ValueError, match="plant_state: missing, but a constraint acts on the executed motion"):
        controller.select_action(observation())
    with pytest.raises(ValueError, match=r"velocity has shape \[2, 3\], expected \[2, 2\]"):
        controller.select_action(observation(), Surroundings(State(torch.tensor(BEGIN), torch.zeros(2, 3))))
    on_commands, world = start(small_policy, safety(CONSTRAINTS[:3]))
    with pytest.raises(ValueError, match="plant_state: missing, but the episode begins"):
        on_commands.select_action(observation())
    world.run(on_commands, 1, lambda tick: None)
    for _ in range(12):  # later, limits on commands do without
        on_commands.select_action(observation())
        assert on_commands.last_plan is not None
        assert on_commands.last_plan.certified.all()
        assert set(on_commands.last_plan.rung) <= {"plan", "prefix"}


def test_limits_on_commands_do_without_a_state_though_a_plant_is_given(small_policy) -> None:
    """No measurement is no deviation."""
    actions = []
    for plant in (PLANT, None):
        controller, world = start(small_policy, safety(CONSTRAINTS[:3], plant=plant))
        world.run(controller, 1, lambda tick: None)
        actions.append([controller.select_action(observation()) for _ in range(10)])
    np.testing.assert_array_equal(actions[0], actions[1])


def test_time_that_runs_backwards_raises_and_a_late_call_stops(small_policy) -> None:
    controller, world = start(small_policy, safety())
    for tick in range(3):
        world.run(controller, 1, lambda tick: both(DISC), time_s=10.0 + 0.1 * tick)
    assert set(world.rungs) <= {"plan", "prefix"}
    for bad in (10.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="time_s"):
            world.run(controller, 1, lambda tick: both(DISC), time_s=bad)
    world.run(controller, 1, lambda tick: both(DISC), time_s=[10.3, 10.9])
    assert world.reports[-1].rung[1] == "prefix"  # late: what is left of the chunk is stale, the robot is to stop
    now = np.stack(world.actions)
    np.testing.assert_allclose(now[-1, 1], now[-2, 1], rtol=0, atol=1e-6)


@over("time_s", [0.201, 0.5])
def test_a_call_at_another_time_than_its_tick_does_not_follow_a_stored_stop_blindly(small_policy, time_s) -> None:
    controller, world = start(small_policy, safety())
    for tick in range(3):
        world.run(controller, 1, lambda tick: both(DISC), time_s=0.1 * tick)
    world.run(controller, 1, lambda tick: both(DISC), nan_at({3}), time_s=time_s)
    assert set(world.reports[-1].rung) == {"hold"}
    assert world.reports[-1].alarm.all()


def test_a_robot_that_is_not_where_it_should_be_stops(small_policy) -> None:
    controller, world = start(small_policy, safety())
    world.run(controller, 3, lambda tick: both(DISC))
    world.position = world.position + np.array([[0.0, 0.0], [0.05, 0.0]])  # the second one is pushed
    world.run(controller, 1, lambda tick: both(DISC))
    assert world.reports[-1].rung[1] in ("prefix", "hold")
    assert world.reports[-1].rung[0] == world.reports[-2].rung[0]
    generous = replace(safety(), assumptions=Assumptions(position_error=0.1, rest_speed=0.05))
    controller, world = start(small_policy, generous)
    world.run(controller, 3, lambda tick: both(DISC))
    before = world.reports[-1].rung.tolist()
    world.position = world.position + np.array([[0.0, 0.0], [0.05, 0.0]])
    world.run(controller, 1, lambda tick: both(DISC))
    assert world.reports[-1].rung.tolist() == before


@pytest.mark.parametrize("seed", range(4))
def test_errors_that_are_assumed_do_no_harm(small_policy, seed: int) -> None:
    """Measured with noise, commands a few sub-steps late, the robot off its plant: what is certified stays clear."""
    assumed = Assumptions(position_error=0.02, velocity_error=0.05, rest_speed=0.1, delay_substeps=2)
    demanded = safety([KeepOut(RADIUS, inset=0.1)], assumptions=assumed)
    controller, world = start(small_policy, demanded, seed=10 * seed)
    obstacles, rng = both(together([DISC, WALL])), np.random.default_rng(seed)
    sent = [world.position] * 3
    states = []
    for _ in range(24):
        noise = [rng.normal(size=(2, 2)) for _ in range(2)]
        noise = [one / np.linalg.norm(one, axis=1, keepdims=True) for one in noise]
        measured = State(torch.tensor(world.position + 0.02 * noise[0]), torch.tensor(world.velocity + 0.05 * noise[1]))
        action = controller.select_action(observation(), Surroundings(measured, obstacles)).astype(np.float64)
        assert controller.last_plan is not None
        states.append((world.position, world.velocity, controller.last_plan.certified))
        sent.append(action)
        delays = np.full((2, 4), int(rng.integers(0, 3)))
        inputs = SERVO.late(np.stack(sent[-4:-1], 1), sent[-1][:, None], 1, delays)
        path, velocity = SERVO.motion(inputs, world.position, world.velocity)
        over = violation(
            Demands(distance=RADIUS, rest_speed=0.1), PERIOD_S, SERVO, solids(obstacles), np.stack(sent[-4:-1], 1),
            action[:, None], inputs, world.position, world.velocity,
        )  # fmt: skip
        assert (over[controller.last_plan.certified] <= 1e-9).all()
        world.position, world.velocity = path[:, -1], velocity[:, -1]
    assert np.stack([certified for *_, certified in states]).mean() > 0.9
