"""ObstacleReach's scripted expert, and the data set that is shipped."""

from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from diffpolicy_envs.experts import reach
from diffpolicy_envs.experts.reach_motion import Follower
from diffpolicy_envs.experts.reach_planner import shortest_way, way_length
from diffpolicy_envs.experts.reach_routes import View, choose_route
from diffpolicy_envs.reach import ObstacleReachEnv
from diffpolicy_envs.reach_geometry import swept_distance
from diffpolicy_envs.reach_variants import draw_layout
from diffpolicy_envs.reach_world import AGENT_RADIUS_PX, VARIANTS
from one_case import over

from diffpolicy.data.replay_buffer import ReplayBuffer

SHIPPED = Path(__file__).resolve().parents[2] / "data" / "reach_expert.zarr.zip"
NO_BARRIER = np.full((2, 2), -1e6)
SEEDS = range(4_000_000, 4_000_010)  # two of each variant


@pytest.fixture(scope="module")
def shipped():
    buffer = ReplayBuffer.open(SHIPPED)
    yield buffer
    buffer.close()


@pytest.fixture(scope="module")
def replayed(shipped):
    """(attributes, successes, least clearance) of every twentieth episode."""
    env, found = ObstacleReachEnv(), []
    attributes = shipped.episode_attributes
    for index in range(0, shipped.n_episodes, 20):
        arrays = shipped.episode(index)
        first = {key: value[0] for key, value in arrays.items()}
        observation, _ = env.reset(options={"layout": reach.layout_of(first, attributes[index])})
        infos = []
        for row, action in enumerate(arrays["action"]):
            # Rounded to 1/8 px when it was stored.
            np.testing.assert_allclose(observation["agent"], arrays["agent"][row], atol=0.0626)
            np.testing.assert_allclose(observation["obstacles"], arrays["obstacles"][row], atol=0.0626)
            observation, _, _, _, info = env.step(action)
            infos.append(info)
        found.append((attributes[index], infos[-1]["is_success"], min(info["clearance"] for info in infos)))
    return found


def test_a_way_keeps_its_clearance_and_is_no_longer_than_needed():
    start, goal = np.array([100.0, 200.0]), np.array([400.0, 200.0])
    vertices, radius = np.full((1, 4, 2), (250.0, 200.0)), np.array([40.0])
    way = shortest_way(start, goal, vertices, radius, 10.0, NO_BARRIER)
    pairs = pairwise(way)
    assert min(swept_distance(a, b, vertices[0], 40.0 + AGENT_RADIUS_PX, np.inf) for a, b in pairs) >= 10.0 - 1e-6
    reach_px = 65.0
    tangents = 2 * np.sqrt(150.0**2 - reach_px**2)
    shortest = tangents + 2 * reach_px * np.arcsin(reach_px / 150.0)  # two tangents and the arc between them
    # Twelve corners about the disc stand for the arc: 1 / cos(15 degrees) = 1.035 as far out.
    assert shortest <= way_length(way) <= 1.02 * shortest


def test_there_is_no_way_into_an_obstacle_ring_or_through_a_barrier():
    angles = np.linspace(0, 2 * np.pi, 7)[:6]
    ring = 250 + 50 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    vertices, radius = np.repeat(ring[:, None], 4, axis=1), np.full(6, 15.0)
    args = np.array([30.0, 250.0]), np.array([250.0, 250.0]), vertices, radius, 0.0
    assert len(shortest_way(*args, NO_BARRIER)) == 0
    wall = np.array([[100.0, -1000.0], [100.0, 1000.0]])
    assert len(shortest_way(args[0], args[1], vertices[:0], radius[:0], 0.0, wall)) == 0


@over("side", [-1, 1])
def test_a_route_passes_on_the_side_that_is_asked_for(side):
    layout = draw_layout(np.random.default_rng(7), "symmetric")
    view = View(layout.agent, layout.goal, layout.vertices[:1], layout.radius[:1], np.zeros((1, 2)))
    route = choose_route(view, 15.0, 5.0, np.random.default_rng(0), side)
    assert route is not None
    way, gone = layout.goal - layout.agent, route.way - layout.agent
    deviations = way[0] * gone[:, 1] - way[1] * gone[:, 0]
    assert np.sign(deviations[np.abs(deviations).argmax()]) == side


def test_the_agent_goes_where_the_follower_wants_it():
    env = ObstacleReachEnv()
    env.reset(options={"layout": {"agent": [100.0, 100.0], "goal": [300.0, 300.0]}})
    follower = Follower(np.array([100.0, 100.0]), 12.0)
    follower.follow(np.array([[100.0, 100.0], [250.0, 100.0], [300.0, 300.0]]))
    speeds = []
    for _ in range(40):
        _, _, _, _, info = env.step(follower.target())
        speeds.append(np.hypot(*info["agent_velocity"]))
        # The corner is rounded, and the target is held for the length of a step.
        assert np.hypot(*(info["agent_position"] - follower.position)) < 8.0
    assert info["is_success"]
    assert max(speeds) < 130.0
    assert speeds[-1] < 1.0


def test_the_expert_solves_unseen_layouts_of_every_variant():
    settings = reach.Settings(recovery_share=0.0)
    episodes = [reach.demonstrate(seed, settings) for seed in SEEDS]
    assert [episode.attributes["variant"] for episode in episodes if episode] == [*VARIANTS, *VARIANTS]
    assert min(episode.attributes["clearance"] for episode in episodes if episode) >= settings.least_clearance_px
    sides = [episode.attributes["side"] for episode in episodes if episode]
    assert sorted([sides[0], sides[5]]) == [-1, 1]  # the symmetric ones take turns


def test_the_expert_can_be_asked_for_one_variant_whose_sides_take_turns():
    settings = reach.Settings(recovery_share=0.0, variant="symmetric")
    episodes = [reach.demonstrate(seed, settings) for seed in (1_000_000, 1_000_001, 1_000_005)]
    assert [episode.attributes["variant"] for episode in episodes if episode] == 3 * ["symmetric"]
    assert [episode.attributes["side"] for episode in episodes if episode] == [-1, -1, 1]


def test_an_episode_depends_on_its_seed_only():
    settings = reach.Settings()
    for seed in SEEDS[:5]:
        one, other = reach.demonstrate(seed, settings), reach.demonstrate(seed, settings)
        assert one is not None
        assert other is not None
        assert one.attributes == other.attributes
        for key in reach.SPECS:
            np.testing.assert_array_equal(one.arrays[key], other.arrays[key])


@over(
    "settings, message",
    [
        ({"speed_px": 50.0}, r"speed_px is 50\.0; expected a number, 2\.0 to 20\.0"),
        ({"recovery_share": "half"}, "recovery_share is 'half'; expected a number"),
        ({"variant": "open"}, "variant is 'open'; expected None or one of symmetric, "),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        reach.Settings(**settings)


def test_shipped_file_is_small_and_holds_what_the_env_observes(shipped):
    assert SHIPPED.stat().st_size < 3_000_000
    observed = {key: space.shape for key, space in ObstacleReachEnv().observation_space.items()}
    assert {key: shape for key, (shape, _) in shipped.specs.items()} == {**observed, "action": (2,)}


def test_shipped_episodes_replay_to_success_without_contact(replayed):
    assert len(replayed) >= 100
    assert all(success and clearance > 0.0 for _, success, clearance in replayed)
    # The card's clearances were taken at every sub-step, as these are.
    assert all(abs(attributes["clearance"] - clearance) < 0.01 for attributes, _, clearance in replayed)


def test_shipped_variants_have_equal_shares_and_symmetric_ones_go_both_ways(shipped):
    attributes = shipped.episode_attributes
    shares = Counter(one["variant"] for one in attributes)
    assert set(shares) == set(VARIANTS)
    assert min(shares.values()) >= 0.85 * max(shares.values())
    sides = [one["side"] for one in attributes if one["variant"] == "symmetric"]
    assert 0.45 < sides.count(1) / len(sides) < 0.55


def test_shipped_seeds_are_not_those_of_evaluations(shipped):
    seeds = [attributes["seed"] for attributes in shipped.episode_attributes]
    assert min(seeds) >= 1_000_000
    assert len(set(seeds)) == len(seeds)
