"""What may differ on resume and what is said about it, fine-tuning, and evaluations that hang or make no sense."""

import dataclasses
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from walk import record, settings, tensors

from diffpolicy import DiffusionPolicy
from diffpolicy.data.replay_buffer import ReplayBuffer
from diffpolicy.evaluation.settings import EnvConfig
from diffpolicy.system import checkpoint
from diffpolicy.system.time_limits import LimitsConfig
from diffpolicy.training.settings import DataConfig, EvaluationConfig, TrainConfig
from diffpolicy.training.trainer import Trainer

SHORT = {"validate_every": 1000, "steps": 8, "checkpoint_every": 4}


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp("data") / "walk.zarr")


@pytest.fixture(scope="module")
def whole(data_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    Trainer(settings(data_set, trainer=SHORT), folder).run()
    return folder


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run", symlinks=True))


def resumed(data_set: Path, **changes) -> TrainConfig:
    return settings(data_set, resume=True, **{"trainer": SHORT, **changes})


def test_data_are_the_same_by_their_content_wherever_and_however_they_are_named(
    data_set: Path, run: Path, tmp_path: Path
) -> None:
    moved = shutil.copytree(data_set, tmp_path / "elsewhere.zarr")
    data = DataConfig(str(moved), "action[0:1]", observations={"state": ["state[:1]", "state[1:2]"]})
    data = dataclasses.replace(data, validation_fraction=0.2)
    assert Trainer(resumed(data_set, data=data), run).step == 8
    data.observations = {"other": ["state"]}
    with pytest.raises(ValueError, match=r"data\.observations \['state'\] in the checkpoint, \['other'\] given"):
        Trainer(resumed(data_set, data=data), run)


def test_a_finished_run_is_extended_and_says_what_its_learning_rate_does(data_set: Path, run: Path) -> None:
    message = r"raised from 8 to 12\. The learning rate .* at step 8 it is 0\.001, not 0"
    with pytest.warns(UserWarning, match=message):
        trainer = Trainer(resumed(data_set, trainer={**SHORT, "steps": 12}), run)
    trainer.run()
    assert DiffusionPolicy.from_pretrained(run / "checkpoints" / "last").metadata["step"] == 12
    with pytest.raises(ValueError, match=r"trainer\.steps 12 in the checkpoint, 10 given"):
        Trainer(resumed(data_set, trainer={**SHORT, "steps": 10}), run)


def test_other_conditions_are_named_and_the_run_goes_on(data_set: Path, run: Path) -> None:
    saved = checkpoint.read_config(run / "checkpoints" / "last")["conditions"]
    assert saved.keys() == {"torch", "numpy", "processor", "threads", "device", "processes"}
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        with pytest.warns(UserWarning, match=rf"resume: threads {threads} before, {threads + 1} now; the result may"):
            assert Trainer(resumed(data_set), run).step == 8
    finally:
        torch.set_num_threads(threads)


def test_fine_tuning_begins_with_the_weights_and_the_normalisation_of_a_checkpoint(whole: Path, tmp_path: Path) -> None:
    buffer = ReplayBuffer.create(tmp_path / "far.zarr", {"action": ((1,), "float32"), "state": ((2,), "float32")})
    for _ in range(3):
        buffer.append_episode({"action": np.linspace(0, 9, 20)[:, None], "state": np.ones((20, 2)) * [[0.1, 0.2]]})
    config = settings(tmp_path / "far.zarr", trainer=SHORT, init_from=str(whole / "checkpoints" / "last"))
    with pytest.warns(UserWarning, match=r"init_from: \d+\.\d% of the actions lie outside the range"):
        trainer = Trainer(config, tmp_path / "run")
    weights = checkpoint.read_tensors(whole / "checkpoints" / "last", "model")
    assert all(torch.equal(value, trainer.policy.state_dict()[name]) for name, value in weights.items())
    trainer.run()
    assert DiffusionPolicy.from_pretrained(tmp_path / "run" / "checkpoints" / "last").metadata["init_from"] == {
        "checkpoint": str(whole / "checkpoints" / "last"),
        "training_step": 8,
    }
    Trainer(dataclasses.replace(config, init_from=None, resume=True), tmp_path / "run")
    other = dataclasses.replace(config, window=dataclasses.replace(config.window, n_action_steps=4))
    with pytest.raises(
        ValueError, match=r"init_from: .* differ: window\.n_action_steps 8 there, 4 given; give the same"
    ):
        Trainer(other, tmp_path / "other")


class Odd(gymnasium.Env):
    """Two steps an episode; the first one of an evaluation hangs, or has an odd reward."""

    observation_space = gymnasium.spaces.Dict({"state": gymnasium.spaces.Box(-1, 1, (2,))})
    action_space = gymnasium.spaces.Box(-1, 1, (1,))

    def __init__(self, reward: str, seconds: float, render_mode: str | None = None) -> None:
        self._odd = float(reward), seconds

    def reset(self, *, seed=None, options=None):
        self._left = 2
        self._reward, self._seconds = self._odd if seed is not None and seed >= 50_000 else (0.0, 0.0)
        return {"state": np.zeros(2, dtype=np.float32)}, {}

    def step(self, action):
        time.sleep(self._seconds)
        self._left -= 1
        return {"state": np.zeros(2, dtype=np.float32)}, self._reward, self._left == 0, False, {}


def evaluated(data_set: Path, reward: float = 0.0, seconds: float = 0.0, env_s: float = 300.0) -> TrainConfig:
    if "test/OddReward-v0" not in gymnasium.registry:
        gymnasium.register("test/OddReward-v0", Odd)
    env = EnvConfig("test/OddReward-v0", kwargs={"reward": str(reward), "seconds": seconds})
    changes = {**SHORT, "checkpoint_every": 1000, "evaluate_every": 6}
    config = settings(data_set, env=env, evaluation=EvaluationConfig(episodes=1, inference_batch=16), trainer=changes)
    return dataclasses.replace(config, limits=LimitsConfig(env_s=env_s), sampler={"name": "ddim", "steps": 1})


def saved_step(folder: Path) -> int:
    return DiffusionPolicy.from_pretrained(folder / "checkpoints" / "last").metadata["step"]


@pytest.mark.parametrize("reward", [float("nan"), float("inf")])
def test_a_reward_that_is_not_finite_is_refused_after_the_step_was_saved(
    data_set: Path, tmp_path: Path, reward: float
) -> None:
    message = rf"step 6: env: the reward of step 1 is {reward} in the episode with seed 50000, .*step_6, .* is intact"
    with pytest.raises(ValueError, match=message):
        Trainer(evaluated(data_set, reward=reward), tmp_path).run()
    assert saved_step(tmp_path) == 6


def test_an_env_that_hangs_ends_the_run_at_the_limit_with_the_step_saved(data_set: Path, tmp_path: Path) -> None:
    message = r"step 6: the env has not answered for 1 s \(limits\.env_s\); .*step_6, .* is intact: resume from it"
    with pytest.raises(OSError, match=message):
        Trainer(evaluated(data_set, seconds=300.0, env_s=1.0), tmp_path).run()
    assert saved_step(tmp_path) == 6


def test_an_env_that_hangs_at_once_is_refused_before_training(data_set: Path, tmp_path: Path) -> None:
    class Hanging(Odd):
        def reset(self, *, seed=None, options=None):
            return super().reset(seed=50_000)

    gymnasium.register("test/Hanging-v0", Hanging)
    config = evaluated(data_set, seconds=300.0, env_s=1.0)
    config.env.id = "test/Hanging-v0"
    with pytest.raises(ValueError, match=r"step\(.*\) fails with TimeoutError: .* not answered for 1 s"):
        Trainer(config, tmp_path)


def test_a_signal_ends_a_run_whose_env_hangs(data_set: Path, tmp_path: Path) -> None:
    class Signalled(Odd):
        def reset(self, *, seed=None, options=None):
            if seed == 50_000:
                threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
            return super().reset(seed=seed)

    gymnasium.register("test/Signalled-v0", Signalled)
    config = evaluated(data_set, seconds=300.0)
    config.env.id = "test/Signalled-v0"
    trainer = Trainer(config, tmp_path)
    assert trainer.run() == signal.SIGTERM
    assert saved_step(tmp_path) == 6


def test_an_evaluation_that_was_done_is_not_repeated_on_resume(data_set: Path, tmp_path: Path) -> None:
    config = evaluated(data_set, reward=0.5)
    Trainer(config, tmp_path / "whole").run()
    shutil.copytree(tmp_path / "whole", tmp_path / "cut", symlinks=True)
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "step_8")
    checkpoint.point(tmp_path / "cut" / "checkpoints" / "last", tmp_path / "cut" / "checkpoints" / "step_6")
    again = dataclasses.replace(config, resume=True)

    evaluated_at: list[int] = []
    trainer = Trainer(again, tmp_path / "cut")
    evaluation = trainer.evaluation

    def counted(policy: DiffusionPolicy, step: int, left: str) -> dict[str, float]:
        evaluated_at.append(step)
        return evaluation(policy, step, left)

    trainer.evaluation = counted
    trainer.run()
    assert evaluated_at == [8]
    assert (tmp_path / "whole" / "metrics.jsonl").read_text() == (tmp_path / "cut" / "metrics.jsonl").read_text()
    first, second = (tensors(tmp_path / name / "checkpoints" / "last") for name in ("whole", "cut"))
    assert all(torch.equal(first[name], second[name]) for name in first)
