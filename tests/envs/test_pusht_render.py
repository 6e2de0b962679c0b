"""Push-T's frames."""

import sys

import numpy as np
import pytest
from diffpolicy_envs import pusht_render
from diffpolicy_envs.pusht import PushTEnv
from numpy.testing import assert_array_equal
from one_case import over

STATE = [100.0, 100.0, 300.0, 350.0, 0.3]


@over("size", [1, 17, 64, 96, 300, 512, 700])
def test_every_size_renders(size):
    env = PushTEnv(render_mode="rgb_array", render_size=size)
    env.reset(seed=0)
    env.step(np.array([100.0, 200.0]))
    frame = env.render()
    assert frame is not None
    assert (frame.shape, frame.dtype) == ((size, size, 3), np.uint8)


@over("size", [96, 256, 512, 1024])
def test_things_are_drawn_where_they_are(size):
    frame = pusht_render.PushTRenderer(size).draw(STATE)

    def color_at(x_px, y_px):
        return tuple(int(part) for part in frame[round(y_px * size / 512), round(x_px * size / 512)])

    assert color_at(100, 100) == pusht_render.AGENT_INSIDE_COLOR
    assert color_at(300 - 4, 350 + 14) == pusht_render.BLOCK_INSIDE_COLOR
    assert color_at(214, 298) == pusht_render.GOAL_COLOR
    assert color_at(450, 60) == pusht_render.WHITE


def test_pixels_do_not_show_the_action():
    env = PushTEnv(obs_type="pixels")
    env.reset(options={"state": STATE})
    observation, *_ = env.step(np.array(STATE[:2]))
    assert_array_equal(observation, pusht_render.PushTRenderer(96).draw(STATE))


def test_frames_show_the_latest_action():
    env = PushTEnv(render_mode="rgb_array")
    env.reset(options={"state": STATE})
    env.step(np.array([400.0, 60.0]))
    frame = env.render()
    assert frame is not None
    assert tuple(frame[60, 400]) == pusht_render.ACTION_COLOR


def test_a_frame_is_the_callers_own():
    env = PushTEnv(obs_type="pixels")
    first, _ = env.reset(seed=0)
    kept = first.copy()
    first[:] = 0
    assert_array_equal(env.reset(seed=0)[0], kept)


def test_human_mode_without_pygame_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pygame", None)
    with pytest.raises(ImportError, match="pip install pygame"):
        PushTEnv(render_mode="human").reset(seed=0)


def test_human_mode_shows_a_window(monkeypatch):
    pytest.importorskip("pygame")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    env = PushTEnv(render_mode="human", render_size=128)
    env.reset(seed=0)
    env.step(np.array([100.0, 100.0]))
    assert env.render() is None
    env.close()
    env.close()


@over("obs_type", ["state", "keypoints", "pixels", "pixels_agent_pos"])
def test_a_stored_state_is_observed_as_in_an_episode(obs_type):
    env = PushTEnv(obs_type=obs_type)
    env.reset(seed=0)
    for _ in range(4):
        observation, _, _, _, info = env.step(np.array([250.0, 300.0]))
    found = env.observe_state(info["state"])
    seen = observation if isinstance(observation, dict) else {"": observation}
    for key, value in (found if isinstance(found, dict) else {"": found}).items():
        assert_array_equal(value, seen[key])
    for wrong in (np.zeros(4), [np.nan] * 5):
        with pytest.raises(ValueError, match="expected five finite numbers"):
            env.observe_state(wrong)
