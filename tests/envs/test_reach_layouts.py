"""ObstacleReach's distances, against shapely, and the rules that drawn layouts keep."""

import math

import numpy as np
import pytest
import shapely
from diffpolicy_envs.reach import ObstacleReachEnv
from diffpolicy_envs.reach_geometry import signed_distance, swept_distance, tangent_points
from diffpolicy_envs.reach_physics import offsets
from diffpolicy_envs.reach_variants import GAP_PX, SPARE_PX, draw_layout
from diffpolicy_envs.reach_world import AGENT_RADIUS_PX, VARIANTS
from one_case import over

SEEDS = range(40)


def layouts(variant):
    return [draw_layout(np.random.default_rng(seed), variant) for seed in SEEDS]


def hull(vertices):
    return shapely.MultiPoint(vertices).convex_hull


def shapes(layout, time_s=0.0):
    moved = layout.vertices + offsets(time_s, layout.travel, layout.speed, layout.phase)[:, None]
    return [hull(moved[slot]).buffer(layout.radius[slot], quad_segs=64) for slot in range(layout.count)]


def some_vertices(generator):
    """A point, a segment, a triangle or a quadrilateral, in either direction round."""
    corners = int(generator.integers(1, 5))
    angles = np.sort(generator.uniform(0, 2 * math.pi, corners))[:: generator.choice([-1, 1])]
    points = 250 + 60 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return np.concatenate([points, np.repeat(points[-1:], 4 - corners, axis=0)])


def expected_distance(point, vertices):
    shape = hull(vertices)
    inside = shape.geom_type == "Polygon" and shape.contains(point)
    return -shape.exterior.distance(point) if inside else shape.distance(point)


def test_distance_is_shapelys():
    generator = np.random.default_rng(0)
    for _ in range(500):
        vertices, (x, y) = some_vertices(generator), generator.uniform(150, 350, 2)
        # Rounding of two ways to compute the same number.
        assert signed_distance(x, y, vertices, 7.0) == pytest.approx(
            expected_distance(shapely.Point(x, y), vertices) - 7.0, abs=1e-9
        )


def test_swept_distance_is_the_least_on_the_way():
    generator = np.random.default_rng(1)
    inside = 0
    for _ in range(200):
        vertices, (start, end) = some_vertices(generator), generator.uniform(150, 350, (2, 2))
        found = swept_distance(start, end, vertices, 7.0, np.inf)
        steps = [signed_distance(*(start + share * (end - start)), vertices, 7.0) for share in np.linspace(0, 1, 400)]
        # Between two of the samples, at most 0.7 px apart, the distance may be less by half of that.
        assert min(steps) - 0.36 <= found <= min(steps) + 1e-9
        inside += found < 0
    assert 20 < inside < 180


def test_the_way_through_a_tangent_point_touches_and_does_not_cut():
    generator = np.random.default_rng(2)
    for _ in range(300):
        vertices, agent = some_vertices(generator), generator.uniform(0, 500, 2)
        if signed_distance(agent[0], agent[1], vertices, 22.0) <= 0.0:
            continue
        (places,) = tangent_points(agent[0], agent[1], 15.0, vertices[None], np.array([7.0]), 1e9)
        for place in places[(places > 0.0).all(axis=1)]:
            # 1e-4 px: a tangent touches where the distance has its minimum, so errors enter squared.
            assert abs(swept_distance(agent, agent + 1.5 * (place - agent), vertices, 22.0, np.inf)) < 1e-4


@over("variant", VARIANTS)
def test_start_and_goal_are_free_and_far_apart(variant):
    for layout in layouts(variant):
        assert 249.0 < math.dist(layout.agent, layout.goal) < 421.0
        for time_s in np.linspace(0.0, 10.0, 11 if variant == "moving" else 1):
            for shape in shapes(layout, time_s):
                for place in (layout.agent, layout.goal):
                    assert shape.distance(shapely.Point(place)) > AGENT_RADIUS_PX + 20.0


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_way_with_room_to_spare_leads_to_the_goal_whatever_moves(variant):
    inner = shapely.box(*[AGENT_RADIUS_PX] * 2, *[512.0 - AGENT_RADIUS_PX] * 2)
    for layout in layouts(variant):
        times = np.linspace(0.0, 18.0, 60) if variant == "moving" else [0.0]
        taken = shapely.union_all([shape for time_s in times for shape in shapes(layout, time_s)])
        # 0.3 px for the grid of 1/16 px, the arcs of 64 pieces and the places between the times.
        free = inner.difference(taken.buffer(AGENT_RADIUS_PX + SPARE_PX - 0.3))
        parts = free.geoms if free.geom_type == "MultiPolygon" else [free]
        ends = [shapely.Point(layout.agent), shapely.Point(layout.goal)]
        assert any(all(part.contains(end) for end in ends) for part in parts)


def test_symmetric_obstacles_are_their_own_mirror_image():
    for layout in layouts("symmetric"):
        (shape,) = shapes(layout)
        way, middle = layout.goal - layout.agent, 0.5 * (layout.goal + layout.agent)
        cosine, sine = way / np.hypot(*way)
        across = np.array([[cosine**2 - sine**2, 2 * cosine * sine], [2 * cosine * sine, sine**2 - cosine**2]])
        mirrored = hull((layout.vertices[0] - middle) @ across + middle).buffer(layout.radius[0], quad_segs=64)
        assert shape.symmetric_difference(mirrored).area < 0.01 * shape.area
        assert shape.intersects(shapely.LineString([layout.agent, layout.goal]))


def test_narrow_gaps_are_narrow():
    for layout in layouts("narrow_gap"):
        one, other = shapes(layout)
        assert GAP_PX - 0.2 < one.distance(other) < 2 * AGENT_RADIUS_PX + 40.2


def test_random_layouts_have_one_to_six_discs_and_polygons():
    drawn = [draw_layout(np.random.default_rng(seed), "random") for seed in range(150)]
    assert {layout.count for layout in drawn} == {1, 2, 3, 4, 5, 6}
    assert any(layout.radius[0] > 0 for layout in drawn)
    assert any(layout.radius[0] == 0 for layout in drawn)


def test_thin_walls_are_thin_and_stand_in_the_way():
    for layout in layouts("thin_wall"):
        assert layout.radius[0] == 3.0
        assert hull(layout.vertices[0]).geom_type == "LineString"
        assert shapes(layout)[0].intersects(shapely.LineString([layout.agent, layout.goal]).buffer(AGENT_RADIUS_PX))


def test_moving_layouts_move_within_the_stated_speeds():
    drawn = layouts("moving")
    assert {layout.count for layout in drawn} == {1, 2, 3}
    for layout in drawn:
        assert (layout.speed[: layout.count] >= 15.0).all()
        assert (layout.speed <= 30.0).all()


def test_mixed_is_any_of_the_five():
    env = ObstacleReachEnv("mixed")
    kinds = set()
    for seed in range(40):
        _, info = env.reset(seed=seed)
        kinds.add((int(info["obstacles"]["mask"].sum()), bool(info["obstacles"]["speed_bound"].any())))
    assert len(kinds) >= 5
