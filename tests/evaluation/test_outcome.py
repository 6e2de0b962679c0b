"""Success, ends and checks of envs that others wrote."""

import importlib
from pathlib import Path
from typing import Any

import gymnasium
import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from one_case import over

from diffpolicy import DiffusionPolicy, PolicyConfig
from diffpolicy.evaluation import outcome
from diffpolicy.evaluation.env_check import check_env, why_not_drawn
from diffpolicy.evaluation.evaluate import evaluate, record_videos, summarize
from diffpolicy.evaluation.outcome import reported_success
from diffpolicy.evaluation.settings import EnvConfig
from diffpolicy.networks.backbones.unet1d import UNet1dConfig

ONE_STEP = {"name": "ddim", "steps": 1}


class Odd(gymnasium.Env):
    """An env whose episodes take `length` steps; `faults` overrides what its methods return."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 25}  # noqa: RUF012

    def __init__(self, key: str | None = None, at: int = 2, length: int | None = 6, fault: str = "", **others: Any):
        self.observation_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float64)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.key, self.at, self.length, self.fault = key, at, length, fault
        self.render_mode = others.get("render_mode")

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if self.fault == "reset":
            raise KeyError("goal")
        self.steps = 0
        return np.zeros(2), {}

    def step(self, action):
        if self.fault == "step":
            raise AttributeError("no motor")
        self.steps += 1
        is_success = self.steps == self.at and self.np_random.random() < 0.5
        info = {} if self.key is None or (self.fault == "sparse" and not is_success) else {self.key: is_success}
        observation = np.zeros(3 if self.fault == "shape" else 2)
        reward = np.nan if self.fault == "reward" else 0.0
        return observation, reward, self.length is not None and self.steps >= self.length, False, info

    def render(self):
        if self.fault == "render":
            raise ImportError("no pygame")
        return None if self.fault == "no frame" else np.full((90, 122, 3), 200, np.uint8)


@pytest.fixture(scope="module")
def policy() -> DiffusionPolicy:
    if "test/Odd-v0" not in gymnasium.registry:
        gymnasium.register("test/Odd-v0", Odd, disable_env_checker=True)
    torch.manual_seed(0)
    policy = DiffusionPolicy(PolicyConfig({"state": 2}, 1, model=UNet1dConfig(widths=[8, 16], time_embedding_dim=8)))
    rows = torch.linspace(-1.0, 1.0, 50)[:, None]
    policy.fit({"state": rows.expand(-1, 2)}, rows)
    return policy.eval()


def odd(**kwargs: Any) -> EnvConfig:
    limits = {"max_episode_steps": kwargs.pop("max_episode_steps")} if "max_episode_steps" in kwargs else {}
    return EnvConfig("test/Odd-v0", kwargs, **limits)


@over("key, fault", [("is_success", ""), ("success", ""), ("is_success", "sparse"), ("success", "sparse")])
def test_a_success_at_any_step_counts_under_either_key(policy: DiffusionPolicy, key: str, fault: str) -> None:
    episodes = evaluate(policy, odd(key=key, fault=fault), ONE_STEP, range(12), inference_batch=16)
    expected = [gymnasium.utils.seeding.np_random(seed)[0].random() < 0.5 for seed in range(12)]
    assert [episode.success for episode in episodes] == expected
    assert {episode.length for episode in episodes} == {6}
    assert 0 < summarize(episodes)["success_rate"] < 1


def test_without_a_key_nothing_succeeds_and_a_warning_says_so(policy: DiffusionPolicy) -> None:
    with pytest.warns(UserWarning, match="neither is_success nor success, so no episode counts as a success"):
        episodes = evaluate(policy, odd(), ONE_STEP, range(2), inference_batch=16)
    assert not any(episode.success for episode in episodes)


@over(
    "info, expected",
    [
        ({"is_success": np.array([True, False])}, [True, False]),
        ({"success": np.array([0.0, 1.0], np.float32)}, [False, True]),
        ({"success": np.array([np.nan, 1.0])}, [False, True]),
        ({"success": np.array([None, True], dtype=object)}, [False, True]),
        ({"is_success": np.array([False, False]), "success": np.array([True, True])}, [False, False]),
        ({"success": np.array([[True], [False]])}, [True, False]),
    ],
)
def test_reports_of_success_are_read_in_every_form(info: dict, expected: list[bool]) -> None:
    found = reported_success(info, 2)
    assert found is not None
    assert found.tolist() == expected


def test_an_episode_without_an_end_is_ended(policy: DiffusionPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    endless = odd(key="success", length=None, max_episode_steps=9)
    assert [episode.length for episode in evaluate(policy, endless, ONE_STEP, range(3), 16)] == [9, 9, 9]
    for module in ("outcome", "rollout"):
        monkeypatch.setattr(importlib.import_module(f"diffpolicy.evaluation.{module}"), "STEP_LIMIT", 11)
    with pytest.warns(UserWarning, match=r"2 episodes did not end .* after 11 steps, the default; env.max_ep"):
        episodes = evaluate(policy, odd(key="success", length=None), ONE_STEP, range(2), 16)
    assert [episode.length for episode in episodes] == [11, 11]
    limited = EnvConfig("test/Odd-v0", {"key": "success", "length": None, "max_episode_steps": 12})  # its own limit
    assert [episode.length for episode in evaluate(policy, limited, ONE_STEP, range(1), 16)] == [12]


@over(
    "changes, message",
    [
        ({"fault": "reset"}, r"env: test/Odd-v0: reset fails with KeyError: 'goal'"),
        ({"fault": "step"}, r"env: test/Odd-v0: step\(\[0.0\]\) fails with AttributeError: no motor"),
        ({"fault": "shape"}, r"step\(\[0.0\]\) fails with ValueError|state has shape \[1, 3\], expected \[1, 2\]"),
        ({"fault": "reward"}, r"env: test/Odd-v0 gives the reward nan, expected a finite number"),
        ({"max_episode_steps": 0}, "env: max_episode_steps 0 must be between 1 and"),
    ],
)
def test_a_fault_of_an_env_is_found_before_any_work(policy: DiffusionPolicy, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_env(odd(**changes), policy)


def test_a_sound_env_passes_without_a_render_mode(policy: DiffusionPolicy) -> None:
    check_env(odd(), policy)
    check_env(odd(fault="no frame"), policy)


@over(
    "changes, message",
    [
        ({"fault": "render"}, "env: test/Odd-v0 cannot be drawn: ImportError: no pygame"),
        ({"fault": "no frame"}, "env: test/Odd-v0 has no render_mode 'rgb_array'"),
        ({"unknown": 1}, None),
    ],
)
def test_an_env_that_cannot_be_drawn_says_why(policy: DiffusionPolicy, changes: dict, message: str | None) -> None:
    assert why_not_drawn(odd(**changes)) == message


def test_videos_have_the_rate_and_the_size_of_the_env(policy: DiffusionPolicy, tmp_path: Path) -> None:
    record_videos(policy, odd(key="success"), ONE_STEP, [3], 16, tmp_path)
    video = tmp_path / "episode_000_seed_3.mp4"
    assert imageio.imread(video).shape == (7, 90, 122, 3)
    assert imageio.immeta(video)["fps"] == 25
    assert outcome.STEP_LIMIT == 10_000
