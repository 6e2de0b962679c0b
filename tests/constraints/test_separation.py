"""Distances between segments and convex polygons, against shapely and against a search over directions."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from one_case import over
from shapely import LineString, MultiPoint, Point

from diffpolicy.constraints.planar.separation import separation

ROUNDING = 1e-9  # of coordinates up to 512 in float64, through a normalised direction
NUMBERS = st.floats(-512.0, 512.0, width=32)
POINTS = st.tuples(NUMBERS, NUMBERS)


def distance(ends, vertices) -> float:
    return float(separation(torch.tensor(ends, dtype=torch.float64), torch.tensor(vertices, dtype=torch.float64))[0])


def shape_of(points):
    """What shapely makes of it: a polygon, a line or a point."""
    return MultiPoint(points).convex_hull


def corners_of(points) -> list[tuple[float, float]]:
    hull = shape_of(points)
    return list(hull.exterior.coords)[:-1] if hull.geom_type == "Polygon" else list(hull.coords)


def depth_by_search(ends, vertices, directions: int = 20_000) -> float:
    """The largest separation along any of many directions; the true one is larger by at most size * (pi / n)^2."""
    angle = np.linspace(0.0, 2 * np.pi, directions, endpoint=False)
    normal = np.stack([np.cos(angle), np.sin(angle)])
    return float(((np.array(ends) @ normal).min(0) - (np.array(vertices) @ normal).max(0)).max())


@settings(max_examples=150, deadline=None, derandomize=True)
@given(ends=st.tuples(POINTS, POINTS), points=st.lists(POINTS, min_size=1, max_size=8))
def test_the_distance_is_shapelys_and_never_more(ends, points) -> None:
    expected = LineString(ends).distance(shape_of(points)) if ends[0] != ends[1] else Point(ends[0]).distance(
        shape_of(points)
    )  # fmt: skip
    found = distance(ends, corners_of(points))
    if expected > 0:
        assert found == pytest.approx(expected, abs=1e-6)  # slivers: shapely's hull rounds too
    assert found <= expected + ROUNDING


@over("seed", range(20))
def test_the_depth_of_an_overlap_is_the_least_way_out(seed: int) -> None:
    rng = np.random.default_rng(seed)
    vertices = corners_of(rng.uniform(-3.0, 3.0, (6, 2)).tolist())
    ends = rng.uniform(-1.0, 1.0, (2, 2)).tolist()
    expected = depth_by_search(ends, vertices)
    # The search misses the best direction by at most half its spacing, in a polygon 10 across.
    assert expected - ROUNDING <= distance(ends, vertices) <= expected + 10.0 * np.pi / 20_000


SQUARE = [(0.0, 0.0), (2.0, 0.0), (2.0, 2.0), (0.0, 2.0)]
WALL = [(0.0, 0.0), (4.0, 0.0)]


@over(
    "ends, vertices, expected",
    [
        ([(3.0, 1.0), (5.0, 1.0)], SQUARE, 1.0),
        ([(3.0, 3.0), (4.0, 4.0)], SQUARE, 2**0.5),  # corner to end
        ([(3.0, -1.0), (3.0, 5.0)], SQUARE, 1.0),  # parallel to an edge
        ([(-1.0, 3.0), (3.0, 3.0)], SQUARE, 1.0),
        ([(1.0, 3.5), (3.5, 1.0)], SQUARE, 0.5 / 2**0.5),  # inside of the segment to a corner
        ([(1.5, 1.0), (1.5, 1.0)], SQUARE, -0.5),  # a point inside
        ([(-5.0, 1.0), (5.0, 1.0)], SQUARE, -1.0),  # straight through
        ([(3.0, 3.0), (3.0, 3.0)], SQUARE, 2**0.5),  # a segment of no length
        ([(0.0, 1.0), (4.0, 1.0)], WALL, 1.0),  # parallel
        ([(5.0, 0.0), (7.0, 0.0)], WALL, 1.0),  # in line with it
        ([(2.0, -1.0), (2.0, 1.0)], WALL, -1.0),  # across it
        ([(1.0, 0.0), (3.0, 0.0)], WALL, 0.0),  # lies on it
        ([(2.0, 0.0), (2.0, 0.0)], WALL, 0.0),
        ([(3.0, 4.0), (3.0, 4.0)], [(0.0, 0.0)], 5.0),
        ([(-1.0, 1.0), (1.0, 1.0)], [(0.0, 0.0)], 1.0),
        ([(-1.0, 0.0), (1.0, 0.0)], [(0.0, 0.0)], 0.0),  # through a point
    ],
)
@over("way", ["as it is", "other way round", "repeated corners", "turned list", "padded"])
def test_simple_cases_in_every_order_of_the_corners(ends, vertices, expected: float, way: str) -> None:
    orders = {
        "as it is": vertices,
        "other way round": vertices[::-1],
        "repeated corners": [corner for corner in vertices for _ in range(2)],
        "turned list": vertices[1:] + vertices[:1],
        "padded": vertices + vertices[-1:] * 3,
    }
    assert distance(ends, orders[way]) == pytest.approx(expected, abs=1e-12)
    assert distance(ends[::-1], orders[way]) == pytest.approx(expected, abs=1e-12)


def test_a_point_in_the_very_place_of_a_point_touches_it_and_has_a_way_out() -> None:
    here = torch.ones(1, 2, dtype=torch.float64)
    found, normal = separation(here.expand(2, 2), here)
    assert float(found) == 0.0
    assert float(normal.norm()) == 1.0


@over("size", [1e-9, 1e-6, 1e-3])
@over("at", [0.0, 512.0, 1e5])
def test_slivers_far_from_the_origin_are_never_called_clearer_than_they_are(size: float, at: float) -> None:
    sliver = [(at, at), (at + 1.0, at), (at + 1.0, at + size), (at, at + size)]
    for order in (sliver, sliver[::-1]):
        assert distance([(at + 0.5, at - 1.0), (at + 0.5, at + 1.0)], order) < 0.0
        assert distance([(at, at + size + 1.0), (at + 1.0, at + size + 1.0)], order) == pytest.approx(1.0, abs=1e-9)


@over("bad", [float("nan"), float("inf")])
@over("where", ["end", "corner"])
def test_what_is_not_a_number_is_never_clear(bad: float, where: str) -> None:
    ends, vertices = (
        torch.tensor([[9.0, 9.0], [8.0, 8.0]], dtype=torch.float64),
        torch.tensor(SQUARE, dtype=torch.float64),
    )
    for index in range(2):
        spoilt = (ends if where == "end" else vertices).clone()
        spoilt[index, 0] = bad
        found, _ = separation(*((spoilt, vertices) if where == "end" else (ends, spoilt)))
        assert not bool(found > 0.0)


def test_the_normal_points_from_the_polygon_to_the_segment() -> None:
    found, normal = separation(
        torch.tensor([[3.0, 1.0], [3.0, 1.5]], dtype=torch.float64), torch.tensor(SQUARE, dtype=torch.float64)
    )
    assert float(found) == 1.0
    assert normal.tolist() == [1.0, 0.0]


def test_batches_are_one_by_one() -> None:
    rng = np.random.default_rng(0)
    ends = torch.tensor(rng.uniform(-5, 5, (4, 1, 2, 2)))
    vertices = torch.tensor(SQUARE, dtype=torch.float64)[None, None] + torch.tensor(rng.uniform(-3, 3, (1, 3, 1, 2)))
    found, _ = separation(ends, vertices)
    one_by_one = [[distance(ends[i, 0].tolist(), vertices[0, j].tolist()) for j in range(3)] for i in range(4)]
    torch.testing.assert_close(
        found, torch.tensor(one_by_one, dtype=torch.float64), rtol=0.0, atol=1e-14
    )  # order of sums


def test_numbers_whose_squares_overflow_are_not_called_clear() -> None:
    corners = torch.tensor([[-1e160, -1e160], [1e160, -1e160], [1e160, 1e160], [-1e160, 1e160]], dtype=torch.float64)
    distance, _ = separation(torch.zeros(1, 2, 2, dtype=torch.float64), corners[None])
    assert float(distance) < 0.0
