"""A robot that gets nowhere goes back the way it came; one that gets on never does."""

import torch
from world import BEGIN, CONSTRAINTS, DEMANDS, RADIUS, both, safety, start

from diffpolicy.constraints.constraint import Rows
from diffpolicy.constraints.keep_out import KeepOut
from diffpolicy.constraints.limits import NormLimit
from diffpolicy.constraints.obstacles import disc
from diffpolicy.safety.dead_end import CHUNKS_BACK, PATIENCE, DeadEnd

ROBOTS, HALF_RANGE = torch.tensor([0, 1]), 100.0
TROUBLED = torch.tensor([True, False])


def at(x: float) -> torch.Tensor:
    """Both robots at (x, 0)."""
    return torch.tensor([[x, 0.0], [x, 0.0]], dtype=torch.float64)


def walked(to: int) -> DeadEnd:
    """Both came from 0 by steps of 10."""
    dead_end = DeadEnd(2, HALF_RANGE)
    for x in range(0, to + 1, 10):
        dead_end.visit(at(float(x)))
    return dead_end


def test_only_a_robot_in_trouble_that_has_not_moved_goes_back_and_only_for_a_while() -> None:
    dead_end = walked(50)
    found = []
    for plan in range(PATIENCE + CHUNKS_BACK):
        dead_end.visit(at(50.0 + plan % 2))
        found.append(dead_end.is_stuck(ROBOTS, at(50.0 + plan % 2), TROUBLED).tolist())
    patient, back, again = PATIENCE - 1, CHUNKS_BACK, 1
    assert found == [[False, False]] * patient + [[True, False]] * back + [[False, False]] * again


def test_a_robot_in_trouble_that_moves_on_is_not_stuck() -> None:
    dead_end = DeadEnd(2, HALF_RANGE)
    for plan in range(5 * PATIENCE):
        assert not dead_end.is_stuck(ROBOTS, at(20.0 * plan), TROUBLED).any()


def test_trouble_that_ends_is_forgotten() -> None:
    dead_end = walked(50)
    for plan in range(5 * PATIENCE):
        is_troubled = torch.tensor([plan % PATIENCE > 0, False])
        assert not dead_end.is_stuck(ROBOTS, at(50.0), is_troubled).any()


def test_the_way_back_is_the_way_there_reversed_as_fast_as_it_was_walked_and_ends_where_it_began() -> None:
    dead_end = walked(30)
    x = [dead_end.way_back(ROBOTS[:1], at(start)[:1], 2)[0, :, 0].tolist() for start in (30.0, 10.0, 0.0)]
    assert x == [[20.0, 10.0], [0.0, 0.0], [0.0, 0.0]]


def test_a_robot_that_walked_slowly_goes_back_slowly() -> None:
    dead_end = DeadEnd(2, HALF_RANGE)
    for x in range(31):
        dead_end.visit(at(float(x)))
    (rows,) = dead_end.way_back(ROBOTS[:1], at(30.0)[:1], 8)
    assert rows[:, 0].diff().abs().max() <= 1.0
    assert rows[-1, 0] == 22.0


def test_a_new_episode_has_no_trail() -> None:
    dead_end = walked(30)
    dead_end.forget(torch.tensor([True, False]))
    rows = dead_end.way_back(ROBOTS, at(30.0), 2)
    assert rows[..., 0].tolist() == [[30.0, 30.0], [20.0, 10.0]]


def test_a_controller_sends_only_what_is_clear_on_the_way_back_too(small_policy) -> None:
    """Robots this slow get nowhere, and their plans are cut short all the time."""
    obstacles = both(disc(6.5, 6.5, 0.8))
    slow = [*CONSTRAINTS[:1], NormLimit(0.3, Rows("commands", 1)), KeepOut(RADIUS, inset=0.05)]
    controller, world = start(small_policy, safety(slow), BEGIN)
    world.run(controller, 40, lambda tick: obstacles)
    assert "retreat" in world.rungs
    assert world.certified.all()
    assert world.overstepped(DEMANDS, obstacles).max() <= 1e-4  # float32, over the period twice
