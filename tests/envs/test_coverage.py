"""The compiled coverage is the exact area share."""

import math

import numpy as np
import pytest
from diffpolicy_envs.coverage import coverage
from diffpolicy_envs.pusht_world import BLOCK_AREA_PX2, GOAL_POSE, LOCAL_OUTLINE, reward_of_coverage
from one_case import over
from shapely import affinity
from shapely.geometry import Polygon

BLOCK = Polygon(LOCAL_OUTLINE)


def shapely_coverage(x: float, y: float, angle: float) -> float:
    def place(pose):
        turned = affinity.rotate(BLOCK, pose[2], origin=(0, 0), use_radians=True)
        return affinity.translate(turned, pose[0], pose[1])

    return place((x, y, angle)).intersection(place(GOAL_POSE)).area / BLOCK.area


def test_outline_has_the_stated_area():
    assert BLOCK.area == BLOCK_AREA_PX2


def test_goal_pose_covers_everything():
    assert coverage(*GOAL_POSE) == pytest.approx(1.0, abs=1e-12)


def test_full_turns_do_not_matter():
    x, y, angle = 250.0, 260.0, 0.5
    # Radians of five turns carry a rounding error of 4e-15; an edge moves by that times 121 px.
    assert coverage(x, y, angle + 10 * math.pi) == pytest.approx(coverage(x, y, angle), abs=1e-12)


@over("spread_px", [0.0, 1e-9, 1e-3, 1.0, 20.0, 100.0])
def test_equals_shapely(spread_px):
    generator = np.random.default_rng(0)
    for _ in range(300):
        x, y = GOAL_POSE[:2] + spread_px * generator.normal(size=2)
        angle = GOAL_POSE[2] + min(spread_px / 30.0, 2.0) * generator.normal()
        # Both are exact up to rounding: areas of 1e4 px^2 at 1e-16 relative, a few hundred operations.
        assert coverage(x, y, angle) == pytest.approx(shapely_coverage(x, y, angle), abs=1e-11)


@over("eighths", range(8))
def test_equals_shapely_where_edges_coincide(eighths):
    pose = (256.0, 256.0, math.pi / 4 * (1 + eighths))
    assert coverage(*pose) == pytest.approx(shapely_coverage(*pose), abs=1e-11)


def test_far_away_is_zero():
    assert coverage(10.0, 500.0, 0.0) == 0.0


def test_reward_is_clipped_at_one():
    assert reward_of_coverage(0.0) == 0.0
    assert reward_of_coverage(0.475) == pytest.approx(0.5)
    assert reward_of_coverage(0.99) == 1.0
