"""Keeping clear of obstacles, against shapely and by hand."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from one_case import over
from shapely import LineString, Polygon

from diffpolicy.constraints.constraint import Scene
from diffpolicy.constraints.planar.keep_out import BarrierDecrease, KeepOut
from diffpolicy.constraints.planar.obstacles import Obstacles, box, disc, polygon, together


def segment(*points: tuple[float, float]) -> torch.Tensor:
    return torch.tensor(points, dtype=torch.float64).reshape(1, -1, 2, 2)


def seen(obstacles: Obstacles, times: Sequence[float] = (0.0,), at_rest: Sequence[bool] | None = None) -> Scene:
    rest = None if at_rest is None else torch.tensor([at_rest])
    return Scene(obstacles, torch.tensor(times, dtype=torch.float64), rest)


def test_a_segment_is_as_clear_as_shapely_says() -> None:
    rng = np.random.default_rng(0)
    shapes = [
        Polygon([(1, 1), (3, 1), (2, 3)]),
        Polygon([(-3, -3), (-1, -3), (-1, -1)]).buffer(0),
        LineString([(0, 4), (4, 4)]),
    ]
    corners = [
        [(1.0, 1.0), (3.0, 1.0), (2.0, 3.0)],
        [(-3.0, -3.0), (-1.0, -3.0), (-1.0, -1.0)],
        [(0.0, 4.0), (4.0, 4.0)],
    ]
    obstacles = together([polygon(one) for one in corners])
    for _ in range(200):
        ends = rng.uniform(-5, 5, (2, 2))
        margin = float(KeepOut(0.25).margin(segment(*ends.tolist()), seen(obstacles)))
        expected = min(LineString(ends).distance(shape) for shape in shapes) - 0.25
        if expected > 0.25:  # a lower bound is enough there
            assert 0.25 - 1e-12 <= margin <= expected + 1e-12
        elif expected > -0.25:
            assert margin == pytest.approx(expected, abs=1e-12)
        else:
            assert margin < -0.25 + 1e-12


def test_a_step_through_a_thin_wall_is_seen_though_both_ends_are_clear() -> None:
    wall, jump = polygon([(0.0, -5.0), (0.0, 5.0)]), segment((-1.0, 0.0), (1.0, 0.1))
    ends = segment((-1.0, 0.0), (-1.0, 0.0), (1.0, 0.1), (1.0, 0.1))
    assert float(KeepOut(0.1).margin(ends, seen(wall, (0.0, 0.0))).amin()) > 0
    assert float(KeepOut(0.1).margin(jump, seen(wall))) < 0
    projected = KeepOut(0.1).prox(jump, seen(wall))(jump[:, None])
    assert float(KeepOut(0.1).margin(projected[:, 0], seen(wall))) >= -1e-12


def test_moving_obstacles_grow_and_a_standing_robot_does_not_mind() -> None:
    at = segment((0.0, 0.0), (0.0, 0.0))
    fast, keep = disc(5.0, 0.0, 1.0, speed=2.0), KeepOut(0.5)
    for time_s, expected in ((0.5, 2.5), (1.0, 1.5), (2.0, -0.5)):
        assert float(keep.margin(at, seen(fast, (time_s,)))) == pytest.approx(expected)
    assert float(keep.margin(at, seen(fast, (2.0,), (True,)))) == float("inf")
    assert float(keep.margin(at, seen(fast, (2.0,), (False,)))) == pytest.approx(-0.5)
    still = disc(0.5, 0.0, 1.0)
    assert float(keep.margin(at, seen(still, (2.0,), (True,)))) < 0  # one that stands is always minded


def test_an_unused_slot_is_nothing_whatever_it_holds() -> None:
    full = disc(0.0, 0.0, 1.0)
    empty = Obstacles(full.vertices * float("nan"), full.radius, full.speed, torch.zeros(1, 1, dtype=torch.bool))
    at = segment((0.0, 0.0), (0.1, 0.0))
    assert float(KeepOut(0.5).margin(at, seen(empty))) == float("inf")
    torch.testing.assert_close(KeepOut(0.5).prox(at, seen(empty))(at[:, None]), at[:, None], rtol=0.0, atol=0.0)


def test_a_barrier_lets_the_distance_shrink_by_its_rate_only() -> None:
    barrier, obstacle = BarrierDecrease(0.25, 0.5), disc(0.0, 0.0, 1.0)
    for end, is_allowed in ((4.51, True), (4.6, True), (4.49, False), (2.0, False), (6.0, True)):
        # h falls from 4 to at least 3
        margin = float(barrier.margin(segment((5.5, 0.0), (end, 0.0)), seen(obstacle)))
        assert (margin >= 0) == is_allowed
    assert float(barrier.margin(segment((5.5, 0.0), (4.0, 0.0)), seen(obstacle))) == pytest.approx(-0.5 / 1.75)


def test_a_barrier_counts_the_distance_at_each_end_of_a_step_by_where_an_obstacle_may_be_then() -> None:
    barrier, moving = BarrierDecrease(0.25, 0.5), disc(0.0, 0.0, 1.0, speed=2.0)
    for times, begin, h in (((0.5,), 0.0, 4.0), ((0.5, 1.0), 1.0, 3.0)):  # the obstacle has grown by `begin` already
        for end, is_allowed in ((begin + 2.5 + 0.75 * h + 0.01, True), (begin + 2.5 + 0.75 * h - 0.01, False)):
            step = segment(*[(5.5, 0.0), (end, 0.0)] * len(times))
            assert (float(barrier.margin(step, seen(moving, times))[0, -1]) >= 0) == is_allowed
            projected = barrier.prox(step, seen(moving, times))(step[:, None])
            assert float(barrier.margin(projected[:, 0], seen(moving, times))[0, -1]) >= -1e-9


@over("error", [0.0, 0.3])
def test_a_margin_above_the_error_may_be_a_lower_bound_and_any_other_is_exact(error: float) -> None:
    rng = np.random.default_rng(0)
    ends = torch.tensor(rng.uniform(0.0, 6.0, (1, 500, 1, 2)) + rng.normal(0.0, 0.5, (1, 500, 2, 2)))
    shapes = together([polygon([(1.0, 1.0), (2.5, 1.4), (2.0, 2.6)]), disc(4.0, 4.0, 0.7, 0.2), box(0, 5, 1, 6)])
    constraint, exact = KeepOut(0.2, 0.1), seen(shapes, [0.5] * 500)
    margin, bound = constraint.margin(ends, exact)[0], constraint.margin(ends, replace(exact, error=error))[0]
    is_exact = (margin - bound).abs() < 1e-12  # rounding
    assert bool(is_exact[bound <= error].all())
    assert not bool(is_exact.all())
    assert bool((bound <= margin + 1e-12).all())
    assert bool(((bound >= error) | is_exact).all())


def test_a_robot_that_keeps_no_distance_is_still_seen_to_cross_a_wall() -> None:
    wall = seen(polygon([(1.0, -1.0), (1.0, 1.0)]))
    assert float(KeepOut(0.0).margin(segment((0.0, 0.0), (2.0, 0.5)), replace(wall, error=0.0))) < 0.0


def test_no_number_is_too_large_to_be_compared() -> None:
    """The square of the distance between the boxes round them is beyond float64's range."""
    huge, far = (
        seen(replace(disc(0.0, 0.0, 1.0), radius=torch.tensor([[1e200]]).double())),
        segment((1e160, 0.0), (1e160, 0.0)),
    )
    assert float(KeepOut(1.0).margin(far, replace(huge, error=0.0))) < 0.0
