"""ObstacleReach: spaces, resets, actions, contact, success."""

import math

import gymnasium
import numpy as np
import pytest
from diffpolicy_envs.reach import ObstacleReachEnv
from diffpolicy_envs.reach_render import AGENT_COLOR, BACKGROUND_COLOR, CONTACT_COLOR, GOAL_COLOR, OBSTACLE_COLOR
from diffpolicy_envs.reach_world import VARIANTS
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from numpy.testing import assert_allclose, assert_array_equal
from one_case import over

NAME = "diffpolicy_envs:diffpolicy/ObstacleReach-v0"
ALL = [*VARIANTS, "mixed"]


def disc(x, y):
    return [[x, y]] * 4


def placed(env=None, **layout):
    env = env or ObstacleReachEnv()
    _, info = env.reset(options={"layout": {"agent": [100.0, 200.0], "goal": [400.0, 200.0], **layout}})
    return env, info


def trace(env, seed, steps=40):
    generator = np.random.default_rng(seed)
    rows = [env.reset(seed=seed)[0]]
    for _ in range(steps):
        rows.append(env.step(generator.uniform(0, 512, 2).astype(np.float32))[0])
    return np.stack([np.concatenate([row[key] for key in sorted(row)]) for row in rows])


@over("variant", ALL)
@pytest.mark.filterwarnings("ignore:.*symmetric and normalized.*")
@pytest.mark.filterwarnings("error")
def test_gymnasium_finds_nothing_wrong(variant):
    env = gymnasium.make(NAME, variant=variant)
    check_env(env.unwrapped, skip_render_check=True)
    assert env.spec is not None
    assert env.spec.max_episode_steps == 100


@over("variant", ALL)
def test_same_seed_and_actions_give_the_same_episode(variant):
    used = ObstacleReachEnv(variant)
    trace(used, seed=1)
    assert_array_equal(trace(used, seed=5), trace(ObstacleReachEnv(variant), seed=5))
    assert not np.array_equal(trace(used, seed=5)[0], trace(used, seed=6)[0])


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_an_episode_does_not_depend_on_its_neighbours(mode):
    options = {"autoreset_mode": AutoresetMode.DISABLED}
    envs = gymnasium.make_vec(NAME, 3, vectorization_mode=mode, vector_kwargs=options, variant="moving")
    alone = ObstacleReachEnv("moving")
    try:
        together, infos = envs.reset(seed=[3, 4, 5])
        observation, info = alone.reset(seed=4)
        for target in np.random.default_rng(0).uniform(100, 400, (6, 3, 2)).astype(np.float32):
            for key, value in observation.items():
                assert_array_equal(together[key][1], value)
            for key in ("agent_position", "agent_velocity", "clearance", "time_s", "side"):
                assert_array_equal(infos[key][1], info[key])
            for key, value in info["obstacles"].items():
                assert_array_equal(infos["obstacles"][key][1], value)
            together, _, ended, _, infos = envs.step(target)
            observation, _, _, _, info = alone.step(target[1])
            if ended.any():
                break
        mask = np.array([False, True, False])
        again, _ = envs.reset(seed=[0, 21, 0], options={"reset_mask": mask})
        assert_array_equal(again["agent"][1], alone.reset(seed=21)[0]["agent"])
        assert_array_equal(again["agent"][0], together["agent"][0])
    finally:
        envs.close()


def test_a_layout_is_observed_exactly():
    env, info = placed(vertices=[disc(200.0, 300.0), [[300, 50], [340, 50], [320, 90], [320, 90]]], radius=[30.5, 0])
    observation = env._observation(env._layout)
    assert_array_equal(observation["agent"], [100, 200])
    assert_array_equal(observation["goal"], [400, 200])
    assert_array_equal(observation["obstacles"][:18], [200, 300] * 4 + [30.5, 300, 50, 340, 50, 320, 90, 320, 90, 0])
    assert_array_equal(observation["obstacles"][18:], 0)
    assert_array_equal(observation["obstacle_mask"], [1, 1, 0, 0, 0, 0])
    assert_array_equal(info["obstacles"]["mask"], [True, True, False, False, False, False])
    assert_array_equal(info["obstacles"]["speed_bound"], 0)


def test_obstacles_that_the_mask_leaves_out_are_not_there():
    _, info = placed(vertices=[disc(120.0, 200.0), disc(300.0, 300.0)], radius=[40, 20], mask=[0, 1])
    assert_array_equal(info["obstacles"]["radius"], [20, 0, 0, 0, 0, 0])
    assert info["clearance"] == pytest.approx(math.hypot(200, 100) - 35)


def test_free_distance_ends_where_the_agent_touches():
    env, _ = placed(vertices=[disc(200.0, 200.0), [[50, 100], [150, 100], [150, 140], [50, 140]]], radius=[20, 0])
    free = env._observation(env._layout)["free_distance"]
    # 0.05 px is where the search stops.
    assert_allclose(free[[0, 6, 12, 18]], [100 - 35, 150, 150, 60 - 15], atol=0.06)


def test_tangents_are_where_the_agent_just_passes():
    env, _ = placed(vertices=[disc(200.0, 200.0)], radius=[35])
    tangents = env._observation(env._layout)["tangents"].reshape(6, 2, 2)
    along, across = 100 - 50**2 / 100, 50 * math.sqrt(1 - 0.5**2)  # circle of 50 px, seen from 100 px away
    # float32 at 250 px: 2e-5.
    assert_allclose(tangents[0], [[100 + along, 200 - across], [100 + along, 200 + across]], atol=5e-5)
    assert_array_equal(tangents[1:], 0)


@over(
    "layout, message",
    [
        ({"agent": [1.0]}, r"agent has shape \(1,\); expected \(2,\)"),
        ({"agent": [1.0, 600.0]}, r"expected a position in \[0, 512\] px"),
        ({"goal": [math.nan, 1.0]}, "goal is .*; expected finite numbers"),
        ({"goal": "there"}, "goal is 'there'; expected numbers"),
        ({"walls": []}, r"unknown keys \['walls'\]"),
        ({"vertices": [disc(1, 1)] * 7}, "7 obstacles; expected at most 6"),
        ({"vertices": [disc(1, 1)], "radius": [-1.0]}, "radius is .*; expected no negative number"),
        ({"vertices": [disc(1, 1)], "speed": [300.0]}, r"speed is \[300\.0\]; expected at most 200 px/s"),
        ({"vertices": [disc(1, 1)], "radius": [1.0, 2.0]}, r"radius has shape \(2,\); expected \(1,\)"),
        ({"vertices": [disc(1, 1)], "mask": [1, 1]}, r"mask has shape \(2,\); expected \(1,\)"),
        ({"vertices": [[[0, 0], [9, 9], [9, 0], [0, 9]]]}, "obstacle 0 are .*; expected the corners of a convex shape"),
        ({"vertices": [[[0, 0], [9, 0], [2, 2], [0, 9]]]}, "obstacle 0 are .*; expected the corners of a convex shape"),
    ],
)
def test_wrong_layouts_are_refused(layout, message):
    with pytest.raises(ValueError, match=message):
        placed(**layout)


def test_wrong_arguments_and_options_are_refused():
    with pytest.raises(ValueError, match="variant is 'maze'; expected one of"):
        ObstacleReachEnv("maze")
    with pytest.raises(ValueError, match="render_mode is 'ansi'"):
        ObstacleReachEnv(render_mode="ansi")
    with pytest.raises(ValueError, match="render_size is 0"):
        ObstacleReachEnv(render_size=0)
    with pytest.raises(ValueError, match=r"unknown options .'state'."):
        ObstacleReachEnv().reset(options={"state": []})
    with pytest.raises(ValueError, match=r"missing keys .'goal'."):
        ObstacleReachEnv().reset(options={"layout": {"agent": [1, 1]}})
    with pytest.raises(gymnasium.error.ResetNeeded):
        ObstacleReachEnv().step(np.zeros(2))


@over("action, message", [([math.nan, 1.0], "finite"), ([1.0, 2.0, 3.0], r"shape \(3,\)")])
def test_wrong_actions_are_refused_and_change_nothing(action, message):
    env, _ = placed()
    with pytest.raises(ValueError, match=message):
        env.step(np.array(action))
    assert_array_equal(env._state, [100, 200, 0, 0])


def test_the_plant_is_that_of_push_t():
    reach, _ = placed(velocity=[30.0, -20.0])
    _, _, _, _, info = reach.step(np.array([700.0, 300.0]))  # clipped to 512
    position, velocity = np.array([100.0, 200.0]), np.array([30.0, -20.0])
    for _ in range(10):
        velocity = velocity + (100.0 * (np.array([512.0, 300.0]) - position) - 20.0 * velocity) * 0.01
        position = position + velocity * 0.01
    # The same arithmetic in another order: rounding only.
    assert_allclose(info["agent_position"], position, rtol=1e-12)
    assert_allclose(info["agent_velocity"], velocity, rtol=1e-12)


@over("key", ["agent_position", "agent_velocity"])
def test_push_t_reports_the_agent_under_the_same_names(key):
    env = gymnasium.make("diffpolicy_envs:diffpolicy/PushT-v0")
    env.reset(seed=0)
    for _ in range(3):
        _, _, _, _, info = env.step(np.array([200.0, 300.0], dtype=np.float32))
    body = env.unwrapped._physics.agent
    assert info[key].dtype == np.float64
    assert_array_equal(info[key], body.position if key == "agent_position" else body.velocity)


def test_success_is_to_be_at_the_goal_and_slow():
    env, info = placed(agent=[390.0, 200.0], goal=[400.0, 200.0], velocity=[300.0, 0.0])
    assert not info["is_success"]
    _, reward, terminated, _, info = env.step(np.array([500.0, 200.0]))
    assert (terminated, info["is_success"]) == (False, False)
    assert reward < 1.0
    for _ in range(20):
        _, reward, terminated, truncated, info = env.step(np.array([400.0, 200.0]))
        if terminated:
            break
    assert (reward, terminated, truncated, info["is_success"]) == (1.0, True, False, True)
    assert math.hypot(*info["agent_velocity"]) < 40.0
    assert math.dist(info["agent_position"], (400.0, 200.0)) <= 20.0


def test_reward_grows_with_progress():
    env, _ = placed()
    rewards = [env.step(np.array([x, 200.0]))[1] for x in (100.0, 200.0, 250.0, 300.0, 300.0)]
    assert rewards[0] == 0.0
    assert rewards == sorted(rewards)
    assert rewards[-1] < 1.0


@pytest.mark.parametrize("is_final", [True, False])
def test_contact_ends_the_episode_as_a_failure_unless_told_otherwise(is_final):
    env, _ = placed(ObstacleReachEnv(terminate_on_contact=is_final), vertices=[disc(160.0, 200.0)], radius=[20])
    for _ in range(30):
        _, reward, terminated, _, info = env.step(np.array([160.0, 200.0]))
        if info["contact_substeps"]:
            break
    assert terminated == is_final
    assert not info["is_success"]
    assert reward < 1.0
    assert info["clearance"] < 0.0
    assert info["penetration"] == -info["clearance"]


def test_penetration_is_the_depth():
    _, info = placed(agent=[200.0, 205.0], vertices=[[[180, 180], [280, 180], [280, 220], [180, 220]]])
    assert info["penetration"] == 15.0 + 15.0  # to the side at y = 220, and the agent's radius


def test_a_thin_wall_is_not_missed_between_sub_steps():
    wall = [[105.0, 100.0], [105.0, 300.0], [105.0, 300.0], [105.0, 300.0]]
    env, _ = placed(agent=[50.0, 200.0], velocity=[9000.0, 0.0], vertices=[wall], radius=[0.5])
    _, _, terminated, _, info = env.step(np.array([512.0, 200.0]))
    assert terminated
    assert info["contact_substeps"] == 1  # over it within one sub-step of 76 px
    assert info["clearance"] == pytest.approx(-15.5, abs=1e-6)


def test_a_standing_agent_that_is_hit_is_told_apart():
    hit = {"vertices": [disc(150.0, 200.0)], "radius": [20], "travel": [[-50, 0]], "speed": [40], "phase": [0.0]}
    env, info = placed(**hit)
    assert_array_equal(info["obstacles"]["speed_bound"], [40, 0, 0, 0, 0, 0])
    for _ in range(10):
        _, _, terminated, _, info = env.step(np.array([100.0, 200.0]))
        if terminated:
            break
    assert info["contact_substeps"] == info["contact_substeps_at_rest"] > 0


def test_moving_obstacles_keep_their_bound_and_turn_round():
    env = ObstacleReachEnv("moving", terminate_on_contact=False)
    turned = False
    for seed in range(10):
        observation, info = env.reset(seed=seed)
        before = info["obstacles"]["vertices"]
        paths = [before]
        for _ in range(99):
            observation, _, _, _, info = env.step(observation["agent"])
            after = info["obstacles"]["vertices"]
            moved = np.linalg.norm(after - before, axis=2).max(axis=1)
            assert (moved <= 0.1 * info["obstacles"]["speed_bound"] + 1e-9).all()
            assert ((after >= 0.0) & (after <= 512.0)).all()
            speeds = np.linalg.norm(observation["obstacle_velocity"].reshape(6, 2), axis=1)
            assert_allclose(speeds, info["obstacles"]["speed_bound"], rtol=1e-6)
            assert_array_equal(observation["obstacles"].reshape(6, 9)[:, :8].reshape(6, 4, 2), np.float32(after))
            before = after
            paths.append(after)
        first = np.array(paths)[:, 0, 0]
        turned |= bool((np.sum(np.diff(first, axis=0)[1:] * np.diff(first, axis=0)[:-1], axis=1) < 0).any())
    assert turned
    assert info["time_s"] == 9.9


@over("y, side", [(260.0, 1), (140.0, -1), (200.0, 0)])
def test_side_says_where_the_agent_passed(y, side):
    env, info = placed()
    assert info["side"] == 0
    env.step(np.array([200.0, y]))
    for _ in range(10):
        _, _, _, _, info = env.step(np.array([300.0, 200.0]))  # back to the line
    assert info["side"] == side


def test_frames_show_what_is_where():
    env = ObstacleReachEnv(render_mode="rgb_array", render_size=256, terminate_on_contact=False)
    square = [[300, 40], [340, 40], [340, 80], [300, 80]]
    placed(env, vertices=[disc(200.0, 300.0), square], radius=[20, 10])
    frame = env.render()
    assert frame is not None
    assert (frame.shape, frame.dtype) == ((256, 256, 3), np.uint8)
    places = {(100, 200): AGENT_COLOR, (400, 200): GOAL_COLOR, (215, 300): OBSTACLE_COLOR, (320, 60): OBSTACLE_COLOR}
    places |= {(348, 60): OBSTACLE_COLOR, (354, 60): BACKGROUND_COLOR, (250, 450): BACKGROUND_COLOR}
    for (x, y), color in places.items():
        assert tuple(frame[y // 2, x // 2]) == color, (x, y)
    placed(env, agent=[230.0, 300.0], vertices=[disc(200.0, 300.0)], radius=[20])
    assert tuple(env.render()[150, 116]) == CONTACT_COLOR


def test_time_limit_truncates_after_100_steps():
    env = gymnasium.make(NAME)
    observation, _ = env.reset(seed=0)
    ends = [env.step(observation["agent"])[3] for _ in range(100)]
    assert ends == [False] * 99 + [True]


def test_stored_arrays_show_what_the_env_with_pixels_shows():
    vectors, pixels = ObstacleReachEnv("mixed"), ObstacleReachEnv("mixed", obs_type="pixels_agent")
    for seed in range(6):
        (seen, _), (shown, _) = vectors.reset(seed=seed), pixels.reset(seed=seed)
        for _ in range(3):
            assert pixels.observation_space.contains(shown)
            stored = np.concatenate([seen[key] for key in ("agent", "goal", "obstacles", "obstacle_mask")])
            again = pixels.observe_state(stored)
            assert_array_equal(again["agent"], shown["agent"])
            assert_array_equal(again["pixels"], shown["pixels"])
            seen, shown = (env.step(seen["goal"])[0] for env in (vectors, pixels))
    colors = {tuple(color) for color in shown["pixels"].reshape(-1, 3).tolist()}
    assert {AGENT_COLOR, GOAL_COLOR, OBSTACLE_COLOR, BACKGROUND_COLOR} <= colors


@over("state, message", [(np.zeros(5), "expected 64 finite"), (np.full(64, np.nan), "expected 64 finite")])
def test_a_state_that_cannot_be_shown_is_refused(state, message):
    with pytest.raises(ValueError, match=message):
        ObstacleReachEnv(obs_type="pixels_agent").observe_state(state)
    with pytest.raises(ValueError, match="obs_type is 'vectors'"):
        ObstacleReachEnv().observe_state(state)
    with pytest.raises(ValueError, match="obs_type is 'pixel'"):
        ObstacleReachEnv(obs_type="pixel")
