"""An env that this package has not heard of is a task by one YAML file in a folder of the user's own."""

import json
from pathlib import Path

import gymnasium
import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from pendulum import make_task
from run_command import run

from diffpolicy import DiffusionPolicy
from diffpolicy.evaluation.env_check import check_env, why_not_drawn
from diffpolicy.evaluation.evaluate import evaluate, record_videos
from diffpolicy.evaluation.settings import EnvConfig
from diffpolicy.networks.backbones.unet1d import UNet1dConfig
from diffpolicy.networks.observation import vector
from diffpolicy.policy.settings import PolicyConfig

TINY = ["model.widths=[8,16]", "model.time_embedding_dim=8", "trainer.batch_size=16", "trainer.steps=2", "device=cpu"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder; the policy is evaluated on the way."""
    folder = make_task(tmp_path_factory.mktemp("own"))
    settings = [*TINY, "evaluation.episodes=2", "sampler.steps=1", f"hydra.run.dir={folder / 'run'}"]
    result = run("train_policy.py", "--config-dir", str(folder), "task=pendulum", *settings)
    assert result.returncode == 0, result.stderr
    return folder / "run"


def test_it_trains_and_is_evaluated_in_its_env(trained: Path) -> None:
    policy = DiffusionPolicy.from_pretrained(trained / "checkpoints" / "last")
    assert policy.metadata["task"] == "pendulum"
    assert (policy.config.observations, policy.config.action_dim) == ({"state": vector(3)}, 1)
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert any("mean_score" in row for row in rows)


def test_the_checkpoint_knows_the_env_without_the_folder(trained: Path, tmp_path: Path) -> None:
    arguments = [f"checkpoint={trained / 'checkpoints' / 'last'}", "episodes=2", "videos=1", "sampler.steps=1"]
    result = run("evaluate_policy.py", *arguments, "inference_batch=16", f"hydra.run.dir={tmp_path}")
    assert result.returncode == 0, result.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert (results["task"], results["success_rate"]) == ("pendulum", 0.0)
    assert [episode["length"] for episode in results["episodes"]] == [200, 200]
    assert results["mean_score"] <= 0.0  # its rewards are costs
    (video,) = (tmp_path / "videos").iterdir()
    assert len(imageio.imread(video)) == 201


def test_with_the_folder_the_task_is_checked(trained: Path, tmp_path: Path) -> None:
    arguments = ["--config-dir", str(trained.parent), "task=pendulum", "checkpoint=data/checkpoints/pusht_small"]
    result = run("evaluate_policy.py", *arguments, f"hydra.run.dir={tmp_path}")
    assert result.returncode == 1
    assert "was trained for task pusht, not pendulum" in result.stderr


ERRORS = {
    "other actions": (
        ["env.id=CartPole-v1", "data.observations.state=[observation, 'observation[:1]']"],
        "takes actions Discrete(2), but the demonstrations have 1 numbers each",
    ),
    "another observation": (["env.id=MountainCarContinuous-v0"], "state has shape [1, 2], expected [1, 3]"),
    "no such env": (["env.id=Pendulumm-v1"], "env: Pendulumm-v1 with {} cannot be made"),
    "two observations": (
        ["+data.observations.speed=['observation[2:]']"],
        "observation is one array, but the policy expects speed, state",
    ),
}


@pytest.mark.parametrize(("changes", "message"), ERRORS.values(), ids=ERRORS)
def test_an_env_that_does_not_fit_is_refused_before_training(
    trained: Path, tmp_path: Path, changes: list[str], message: str
) -> None:
    arguments = ["--config-dir", str(trained.parent), "task=pendulum", *TINY, *changes]
    result = run("train_policy.py", *arguments, f"hydra.run.dir={tmp_path}")
    assert result.returncode == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "checkpoints").exists()


class Plain(gymnasium.Env):
    """No more than gymnasium asks for: no render mode, float64, no info; refuses actions outside of its space."""

    def __init__(self) -> None:
        self.observation_space = gymnasium.spaces.Box(-1.0, 1.0, (3,), np.float64)
        self.action_space = gymnasium.spaces.Box(0.0, 10.0, (2,), np.float64)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.uniform(-1.0, 1.0, 3), {}

    def step(self, action):
        assert self.action_space.contains(action)
        return self.np_random.uniform(-1.0, 1.0, 3), -1.0, bool(self.np_random.random() < 0.5), False, {}


@pytest.fixture
def plain_env() -> EnvConfig:
    if "test/Plain-v0" not in gymnasium.registry:
        gymnasium.register("test/Plain-v0", Plain, max_episode_steps=5)
    return EnvConfig("test/Plain-v0")


@pytest.fixture
def plain_policy() -> DiffusionPolicy:
    torch.manual_seed(0)
    policy = DiffusionPolicy(PolicyConfig({"any_name": 3}, 2, model=UNet1dConfig(widths=[8, 16])))
    rows = torch.linspace(0.0, 1.0, 100)[:, None]
    policy.fit({"any_name": 2.0 * rows.expand(-1, 3) - 1.0}, 10.0 * rows.expand(-1, 2))
    return policy.eval()


def test_an_env_needs_no_more_than_gymnasium_asks_for(plain_env: EnvConfig, plain_policy: DiffusionPolicy) -> None:
    check_env(plain_env, plain_policy)
    with pytest.warns(UserWarning, match="neither is_success nor success"):
        episodes = evaluate(plain_policy, plain_env, {"name": "ddim", "steps": 1}, range(8), inference_batch=16)
    assert [episode.score for episode in episodes] == [-1.0] * 8
    assert not any(episode.success for episode in episodes)
    assert min(episode.length for episode in episodes) < 5


def test_an_env_that_cannot_be_drawn_is_named(
    plain_env: EnvConfig, plain_policy: DiffusionPolicy, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"test/Plain-v0 with \{'render_mode': 'rgb_array'\} cannot be made"):
        record_videos(plain_policy, plain_env, {"name": "ddim", "steps": 1}, range(1), 1, tmp_path)
    assert "test/Plain-v0 with {'render_mode': 'rgb_array'} cannot be made" in (why_not_drawn(plain_env) or "")
