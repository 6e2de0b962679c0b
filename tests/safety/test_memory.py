"""What is remembered from tick to tick: history, time, and whether anything contradicts what was assumed."""

import numpy as np
import pytest
import torch
from one_case import over

from diffpolicy.constraints.assumptions import Assumptions
from diffpolicy.constraints.planar.obstacles import Obstacles, disc, no_obstacles
from diffpolicy.constraints.plant import LinearPlant, State, position_servo
from diffpolicy.safety.memory import RobotMemory
from diffpolicy.safety.surroundings import Surroundings

PLANT, PERIOD_S, STOP = position_servo(100.0, 20.0, 0.02, 5), 0.1, 4
HERE = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
STILL = State(HERE, 0.0 * HERE)
UNKNOWN = State(HERE * float("nan"), HERE)
NOTHING = no_obstacles(1)


def memory(assumptions: Assumptions | None = None, plant: LinearPlant | None = PLANT) -> RobotMemory:
    return RobotMemory(1, 2, STOP, plant, assumptions or Assumptions())


def observe(robot: RobotMemory, state: State | None, obstacles: Obstacles = NOTHING, time_s=None) -> None:
    robot.observe(Surroundings(state, obstacles.padded(1), time_s), PERIOD_S, needs_state=False)


def send(robot: RobotMemory, x: float) -> torch.Tensor:
    action = torch.tensor([[x, 2.0]], dtype=torch.float64)
    robot.advance(action)
    return action


def situation(robot: RobotMemory, is_fresh: bool = False):
    return robot.situation(torch.tensor([0]), is_fresh)


def moved(state: State, action: torch.Tensor) -> State:
    position, velocity = PLANT.motion(action[:, None], state)
    return State(position[:, -1], velocity[:, -1])


def history(robot: RobotMemory) -> list[float]:
    return robot.start.commands[0, :, 0].tolist()


def test_an_episode_begins_as_if_it_had_been_told_to_stand_where_it_stands() -> None:
    robot = memory()
    observe(robot, STILL)
    assert robot.start.commands.tolist() == [[HERE[0].tolist()] * 3]
    now = situation(robot)
    assert bool(now.is_known & now.is_as_expected & now.is_timely)
    assert bool(now.stored.isnan().all())
    assert now.last.tolist() == HERE.tolist()


def test_commands_are_remembered_in_order() -> None:
    robot, state = memory(), STILL
    for x in (1.5, 2.5, 3.5, 4.5):
        observe(robot, state)
        state = moved(state, send(robot, x))
        assert bool(situation(robot).is_as_expected)
    assert history(robot) == [2.5, 3.5, 4.5]


@over(
    "late_s, expected",
    [(0.0, [2.0, 3.0, 4.0]), (0.09, [2.0, 3.0, 4.0]), (0.1, [3.0, 4.0, 4.0]), (0.29, [4.0] * 3), (9.0, [4.0] * 3)],
)
def test_for_every_whole_tick_missed_the_last_command_was_in_force(late_s: float, expected: list[float]) -> None:
    robot = memory()
    for tick, x in enumerate((2.0, 3.0, 4.0)):
        observe(robot, STILL, time_s=PERIOD_S * tick)
        send(robot, x)
    observe(robot, STILL, time_s=0.3 + late_s)
    assert history(robot) == expected


@over("time_s, is_timely", [(0.1, True), (0.119, True), (0.081, True), (0.121, False), (0.079, False), (0.0, False)])
def test_a_call_off_its_tick_by_more_than_the_latency_is_neither_timely_nor_may_it_follow_a_stored_stop(
    time_s: float, is_timely: bool
) -> None:
    robot = memory(Assumptions(latency_s=0.02))
    observe(robot, STILL, time_s=0.0)
    robot.stored[:] = 1.0
    state = moved(STILL, send(robot, 1.0))
    observe(robot, state, time_s=time_s)
    assert bool(situation(robot).is_timely) == is_timely
    assert bool(situation(robot, is_fresh=True).is_timely)
    assert bool(robot.stored.isfinite().all()) == is_timely


def test_time_that_runs_backwards_changes_nothing() -> None:
    robot = memory()
    observe(robot, STILL, time_s=5.0)
    send(robot, 1.0)
    for bad in (4.9, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="time_s"):
            observe(robot, STILL, time_s=bad)
    observe(robot, STILL, time_s=5.1)
    assert bool(situation(robot).is_timely)


def pushed(state: State, off: float, off_velocity: float) -> State:
    return State(state.position + torch.tensor([[off, 0.0]]), state.velocity + torch.tensor([[0.0, off_velocity]]))


@over("off, off_velocity", [(0.0, 0.0), (9e-4, 0.0), (2e-3, 0.0), (0.0, 9e-4), (0.0, 2e-3)])
@over("bound", [0.0, 0.01])
def test_a_deviation_is_what_exceeds_the_assumed_errors(off: float, off_velocity: float, bound: float) -> None:
    """The errors of both measurements, of this tick and of the one before, count; and the tolerance, 1e-3."""
    robot = memory(Assumptions(position_error=bound, velocity_error=bound))
    observe(robot, STILL)
    state = moved(STILL, send(robot, 3.0))
    observe(robot, pushed(state, off, off_velocity))
    assert bool(situation(robot).is_as_expected) == (max(off, off_velocity) <= 1e-3 + bound)
    far = memory(Assumptions(position_error=bound, velocity_error=bound))
    observe(far, STILL)
    observe(far, pushed(moved(STILL, send(far, 3.0)), 1.0, 0.0))
    assert not bool(situation(far).is_as_expected)


@over("late_s", [-0.01, 1e-5, 0.004, 0.019])
def test_a_state_measured_off_its_tick_may_be_from_then_or_from_the_tick(late_s: float) -> None:
    for share, push, is_as_expected in (
        (0.0, 0.0, True),
        (1.0, 0.0, True),
        (1.0, 0.3, False),
        (3.0, 0.0, late_s < 1e-4),
    ):
        robot = memory(Assumptions(latency_s=0.02))
        observe(robot, STILL, time_s=0.0)
        action = send(robot, 3.0)
        state = moved(STILL, action)
        off = torch.stack([state.position - action, state.velocity], dim=1)
        later = PLANT.flow.later(off, torch.tensor([share * late_s / PLANT.substep_s]).double())
        observe(robot, pushed(State(later[:, 0] + action, later[:, 1]), push, 0.0), time_s=0.1 + late_s)
        assert bool(situation(robot).is_as_expected) == is_as_expected or (late_s < 0.0 and share == 3.0)


def test_over_unknown_ticks_the_motion_is_predicted_and_a_push_still_seen() -> None:
    for push, is_as_expected in ((0.0, True), (0.5, False)):
        robot, state = memory(), STILL
        for tick, x in enumerate((2.0, 3.0, 3.0, 3.0)):
            observe(robot, state if tick == 0 else UNKNOWN)
            assert bool(situation(robot).is_known) == (tick == 0)
            assert bool(situation(robot).is_as_expected)
            torch.testing.assert_close(robot.start.state.position, state.position, rtol=0.0, atol=1e-12)  # rounding
            state = moved(state, send(robot, x))
        observe(robot, pushed(state, push, 0.0))
        assert bool(situation(robot).is_as_expected) == is_as_expected


def test_over_unknown_ticks_the_assumed_errors_grow_but_are_no_deviation() -> None:
    rng = np.random.default_rng(0)
    assumed = Assumptions(position_error=0.02, velocity_error=0.1, delay_substeps=3)
    for _ in range(20):
        robot, true = memory(assumed), STILL
        angle = rng.uniform(0, 2 * np.pi, 2)
        off = torch.tensor(np.stack([np.cos(angle), np.sin(angle)], 1))
        observe(robot, State(true.position + 0.02 * off[:1], true.velocity + 0.1 * off[1:]))
        for _ in range(5):
            true = moved(true, send(robot, 2.0))
            observe(robot, UNKNOWN)
        observe(robot, true)
        assert bool(situation(robot).is_as_expected)


def test_no_measurement_is_no_deviation() -> None:
    robot = memory()
    observe(robot, STILL)
    send(robot, 5.0)
    observe(robot, None)
    assert bool(situation(robot).is_as_expected)
    assert bool(situation(robot).is_known)


def test_a_robot_without_a_measured_state_counts_as_standing_where_it_was_last_told_to_be() -> None:
    robot = memory()
    observe(robot, STILL)
    for x in (4.0, 5.0):
        sent = send(robot, x)
        observe(robot, None)
        assert robot.start.state.position.tolist() == sent.tolist()
        assert robot.start.state.velocity.tolist() == [[0.0, 0.0]]


@over(
    "now, is_kept",
    [
        (disc(5.0, 5.0, 1.0, speed=1.0), True),
        (disc(5.1, 5.0, 1.0, speed=1.0), True),
        (disc(5.2, 5.0, 1.0, speed=1.0), False),
        (disc(5.0, 5.0, 1.0, speed=2.0), False),
        (disc(5.0, 5.0, 1.3, speed=1.0), False),
        (NOTHING, True),
    ],
)
def test_a_stored_stop_is_kept_only_while_obstacles_keep_to_their_speed(now: Obstacles, is_kept: bool) -> None:
    robot = memory()
    observe(robot, STILL, disc(5.0, 5.0, 1.0, speed=1.0))
    robot.stored[:] = 1.0
    state = moved(STILL, send(robot, 1.0))
    observe(robot, state, now)
    assert bool(robot.stored.isfinite().all()) == is_kept
    assert bool(situation(robot).is_as_expected)  # a new plan may be certified all the same


def test_forgetting_one_robot_leaves_the_other() -> None:
    robots = RobotMemory(2, 2, STOP, PLANT, Assumptions())
    both = State(HERE.repeat(2, 1), 0.0 * HERE.repeat(2, 1))
    robots.observe(Surroundings(both, no_obstacles(2), 7.0), PERIOD_S, True)
    robots.stored[:] = 1.0
    robots.advance(HERE.repeat(2, 1) + 1.0)
    robots.forget(torch.tensor([True, False]))
    there = moved(STILL, HERE + 1.0)
    states = State(torch.cat([HERE + 5.0, there.position]), torch.cat([0.0 * HERE, there.velocity]))
    robots.observe(Surroundings(states, no_obstacles(2), [0.0, 7.1]), PERIOD_S, True)
    assert robots.situation(torch.tensor([0, 1]), False).is_as_expected.tolist() == [True, True]
    assert robots.stored.isfinite().all(-1).all(-1).tolist() == [False, True]
    assert robots.start.commands[0].tolist() == (HERE + 5.0).repeat(3, 1).tolist()
    assert robots.start.commands[1, -1].tolist() == (HERE + 1.0)[0].tolist()
