"""A robot that gets nowhere follows its plan to its end, or goes back the way it came; one that gets on never does."""

import numpy as np
import torch
from one_case import over
from world import BEGIN, CONSTRAINTS, DEMANDS, RADIUS, SERVO, both, safety, start

from diffpolicy.constraints.constraint import Quantity
from diffpolicy.constraints.limits import NormLimit
from diffpolicy.constraints.planar.keep_out import KeepOut
from diffpolicy.constraints.planar.obstacles import disc
from diffpolicy.constraints.plant import State
from diffpolicy.safety.dead_end import BACK, CHUNKS_BACK, FOLLOW, NEW, PATIENCE, TRAIL_LENGTH, DeadEnd
from diffpolicy.safety.layer import SafetyLayer
from diffpolicy.safety.samples import Samples
from diffpolicy.safety.surroundings import Surroundings

ROBOTS, HALF_RANGE = torch.tensor([0, 1]), 100.0
TROUBLED, UNTROUBLED = torch.tensor([True, False]), torch.tensor([False, False])
NO_REST = torch.zeros(2, 0, 2)
REST = torch.arange(20.0).view(2, 5, 2)


def at(x: float) -> torch.Tensor:
    """Both robots at (x, 0)."""
    return torch.tensor([[x, 0.0], [x, 0.0]], dtype=torch.float64)


def walked(to: int) -> DeadEnd:
    """Both came from 0 by steps of 10."""
    dead_end = DeadEnd(2, HALF_RANGE)
    for x in range(0, to + 1, 10):
        dead_end.visit(at(float(x)))
    return dead_end


def turned(dead_end: DeadEnd) -> DeadEnd:
    """Both have been in trouble, and go back."""
    for _ in range(PATIENCE):
        ways = dead_end.turn(ROBOTS, at(30.0), torch.tensor([True, True]), NO_REST)
    assert (ways == BACK).all()
    return dead_end


def test_only_a_robot_in_trouble_that_has_not_moved_goes_back_and_only_for_a_while() -> None:
    dead_end = walked(50)
    found = []
    for plan in range(PATIENCE + CHUNKS_BACK):
        dead_end.visit(at(50.0 + plan % 2))
        found.append(dead_end.turn(ROBOTS, at(50.0 + plan % 2), TROUBLED, NO_REST).tolist())
    patient, back, again = PATIENCE - 1, CHUNKS_BACK, 1
    assert found == [[NEW, NEW]] * patient + [[BACK, NEW]] * back + [[NEW, NEW]] * again


def test_a_robot_that_gets_nowhere_by_plans_that_it_wanted_follows_every_plan_to_its_end() -> None:
    dead_end = walked(50)
    found, rows = [], []
    for plan in range(PATIENCE + 5):
        ways = dead_end.turn(ROBOTS, at(50.0), UNTROUBLED, REST + plan)
        found.append(ways.tolist())
        if (ways == FOLLOW).all():
            rows.append(dead_end.next_rows(ROBOTS, at(50.0), 3))
    new, follow = [[NEW, NEW]], [[FOLLOW, FOLLOW]]
    assert found == new * PATIENCE + follow * 2 + new + follow * 2
    followed = REST[:, [0, 1, 2, 3, 4, 4]].double()
    expected = torch.cat([followed + PATIENCE - 1, followed + PATIENCE + 2], dim=1)
    torch.testing.assert_close(torch.cat(rows, dim=1), expected, rtol=0, atol=0)


@over("step, rest", [(20.0, REST), (0.0, NO_REST)])
def test_new_plans_are_sent_where_the_robot_gets_on_or_its_plans_have_no_rest(step: float, rest: torch.Tensor) -> None:
    dead_end = DeadEnd(2, HALF_RANGE)
    for plan in range(5 * PATIENCE):
        assert (dead_end.turn(ROBOTS, at(step * plan), UNTROUBLED, rest) == NEW).all()


def test_a_robot_in_trouble_that_moves_on_is_not_stuck() -> None:
    dead_end = DeadEnd(2, HALF_RANGE)
    for plan in range(5 * PATIENCE):
        assert (dead_end.turn(ROBOTS, at(20.0 * plan), TROUBLED, REST) == NEW).all()


def test_trouble_that_ends_is_forgotten() -> None:
    dead_end = walked(50)
    for plan in range(5 * PATIENCE):
        is_troubled = torch.tensor([plan % PATIENCE > 0, False])
        assert (dead_end.turn(ROBOTS, at(50.0), is_troubled, NO_REST) == NEW).all()


def test_the_way_back_is_the_way_there_reversed_as_fast_as_it_was_walked_and_ends_where_it_began() -> None:
    dead_end = turned(walked(30))
    x = [dead_end.next_rows(ROBOTS[:1], at(start)[:1], 2)[0, :, 0].tolist() for start in (30.0, 10.0, 0.0)]
    assert x == [[20.0, 10.0], [0.0, 0.0], [0.0, 0.0]]


def test_a_robot_that_stands_still_does_not_forget_the_way_there() -> None:
    dead_end = walked(30)
    for _ in range(2 * TRAIL_LENGTH):
        dead_end.visit(at(30.0))
    rows = turned(dead_end).next_rows(ROBOTS[:1], at(30.0)[:1], 2)
    assert rows[0, :, 0].tolist() == [20.0, 10.0]


def test_the_way_back_is_not_remembered_as_a_way_there() -> None:
    dead_end = turned(walked(30))
    x = []
    for place in (30.0, 20.0, 10.0):
        dead_end.visit(at(place))
        x.append(float(dead_end.next_rows(ROBOTS[:1], at(place)[:1], 1)[0, 0, 0]))
    assert x == [20.0, 10.0, 0.0]


def test_a_robot_that_walked_slowly_goes_back_slowly() -> None:
    dead_end = DeadEnd(2, HALF_RANGE)
    for x in range(31):
        dead_end.visit(at(float(x)))
    (rows,) = turned(dead_end).next_rows(ROBOTS[:1], at(30.0)[:1], 8)
    assert rows[:, 0].diff().abs().max() <= 1.0
    assert rows[-1, 0] == 22.0


def test_a_new_episode_has_no_trail() -> None:
    dead_end = walked(30)
    dead_end.forget(torch.tensor([True, False]))
    rows = turned(dead_end).next_rows(ROBOTS, at(30.0), 2)
    assert rows[..., 0].tolist() == [[30.0, 30.0], [20.0, 10.0]]


def test_a_controller_sends_only_what_is_clear_on_the_way_back_too(small_policy) -> None:
    """Robots this slow get nowhere, and their plans are cut short all the time."""
    obstacles = both(disc(6.5, 6.5, 0.8))
    slow = [*CONSTRAINTS[:1], NormLimit(0.3, Quantity("commands", 1)), KeepOut(RADIUS, inset=0.05)]
    controller, world = start(small_policy, safety(slow), BEGIN)
    world.run(controller, 40, lambda tick: obstacles)
    assert "retreat" in world.rungs
    assert world.certified.all()
    assert world.overstepped(DEMANDS, obstacles).max() <= 1e-4  # float32, over the period twice


def test_a_policy_that_always_steps_back_before_it_goes_on_gets_on_all_the_same() -> None:
    """Its first four rows hold the robot where it is; the other eight lead a unit away."""
    layer = SafetyLayer(safety(mode="none"), 1, 12, 4, torch.full((2,), 0.04))
    position = np.array([[3.0, 3.0]])
    velocity = np.zeros_like(position)
    ahead = torch.cat([torch.zeros(4), torch.linspace(0.125, 1.0, 8)])[None, :, None] * torch.tensor([1.0, 0.0])
    x = []
    for tick in range(48):
        layer.observe(Surroundings(State(torch.from_numpy(position), torch.from_numpy(velocity))))
        if tick % 4 == 0:
            plans = (torch.from_numpy(position)[:, None] + ahead).float()
            chunk = layer.settle(layer.consider(torch.tensor([0]), Samples.of(plans, None)))
        chunk = chunk if tick % 4 == 0 else layer.check(torch.tensor([0]), np.roll(chunk, -1, axis=1))
        assert layer.sent(chunk[:, 0]).certified.all()
        path, speed = SERVO.motion(SERVO.held(chunk[:, :1].astype(np.float64), 1), position, velocity)
        position, velocity = path[:, -1], speed[:, -1]
        x.append(position[0, 0])
    assert max(x[: 4 * PATIENCE]) < 3.01
    assert x[-1] > 3.5
