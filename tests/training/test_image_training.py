"""A policy that sees trains, resumes, validates and acts like any other, streamed or not, with the same bits."""

import dataclasses
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
import walk
from gymnasium import spaces
from seams import TokenEncoder, TokenReader

from diffpolicy import DiffusionPolicy
from diffpolicy.data.replay_buffer import ReplayBuffer
from diffpolicy.evaluation.env_check import check_env
from diffpolicy.evaluation.evaluate import report
from diffpolicy.evaluation.settings import EnvConfig
from diffpolicy.policy import build
from diffpolicy.policy.settings import WindowConfig
from diffpolicy.system.tables import Entry, NameOnly
from diffpolicy.training import run_settings
from diffpolicy.training.data_formats import load_data
from diffpolicy.training.settings import DataConfig, EvaluationConfig, TrainConfig
from diffpolicy.training.trainer import Trainer

SEES = {"top": ["top"], "wrist": ["cameras/wrist"], "goal": ["state[1:]"]}
FORMATS = {"top": {}, "wrist": {"channels": "first", "values": "unit"}}
WINDOW = WindowConfig(horizon=8, n_obs_steps=2, n_action_steps=4)


@pytest.fixture(autouse=True)
def tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    new = {
        "ENCODERS": {"tokens": Entry(NameOnly, lambda own, specs, steps: TokenEncoder(specs, steps))},
        "BACKBONES": {"reader": Entry(NameOnly, TokenReader.from_settings)},
    }
    for table, more in new.items():
        whole = MappingProxyType({**getattr(build, table), **more})
        for module in (build, run_settings):
            monkeypatch.setattr(module, table, whole)


def pictures(position: np.ndarray, size: int = 8) -> np.ndarray:
    """A bright column [n, size, size, 3] where the point is, between -1 and 1."""
    columns = np.linspace(-1.0, 1.0, size)
    light = np.exp(-(((columns - position[:, None]) * size / 3) ** 2))
    return np.broadcast_to((255 * light).astype(np.uint8)[:, None, :, None], (len(position), size, size, 3)).copy()


def record(path: Path, size: int = 8) -> Path:
    """The walk of `walk.record` with two cameras: one as uint8, one as floats with channels first."""
    specs = {
        "action": ((1,), "f4"),
        "state": ((2,), "f4"),
        "top": ((size, size, 3), "u1"),
        "cameras/wrist": ((3, 8, 8), "f4"),
    }
    buffer, generator = ReplayBuffer.create(path, specs), np.random.default_rng(0)
    for _ in range(10):
        start, goal = generator.uniform(-1, 1, size=2)
        position = np.linspace(start, goal, 21)
        wrist = np.moveaxis(pictures(goal - position[:-1]), -1, 1).astype("f4") / 255
        state = np.stack([position[:-1], np.full(20, goal)], axis=1)
        arrays = {"action": position[1:, None], "state": state, "top": pictures(position[:-1], size)}
        buffer.append_episode({**arrays, "cameras/wrist": wrist})
    return path


def settings(
    data_set: Path | list[Path], env: EnvConfig | None = None, stream: Any = (), **trainer: Any
) -> TrainConfig:
    paths = [str(path) for path in data_set] if isinstance(data_set, list) else str(data_set)
    data = DataConfig(paths, observations=SEES, images=FORMATS, stream=list(stream), workers=0, validation_fraction=0.2)
    config = walk.settings(Path("unused"), trainer=trainer)
    choices = {"model": "reader", "encoder": "tokens", "window": WINDOW, "env": env}
    return dataclasses.replace(config, data=data, evaluation=EvaluationConfig(2, 50_000, 2), **choices)


def trained(config: TrainConfig, folder: Path) -> dict[str, torch.Tensor]:
    Trainer(config, folder).run()
    return walk.tensors(folder / "checkpoints" / "last")


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_streamed_images_train_the_same_bits_as_those_in_memory_and_a_run_resumes_with_either(tmp_path: Path) -> None:
    data = record(tmp_path / "data.zarr")
    whole = trained(settings(data), tmp_path / "whole")
    assert_same(trained(settings(data, stream=["top", "wrist"]), tmp_path / "streamed"), whole)
    folder = tmp_path / "cut"
    first = Trainer(settings(data), folder)
    step = first.train_step
    first.train_step = lambda: step() if first.step < 12 else (_ for _ in ()).throw(KeyError)  # after checkpoint 8
    with pytest.raises(KeyError):
        first.run()
    resumed = dataclasses.replace(settings(data, stream=["wrist"]), resume=True)
    assert_same(trained(resumed, folder), whole)


def test_the_mixture_of_two_data_sets_holds_images(tmp_path: Path) -> None:
    both = [record(tmp_path / "a.zarr"), record(tmp_path / "b.zarr")]
    held, left = load_data(settings(both).data), load_data(settings(both, stream=["top"]).data)
    rows = torch.tensor([[0, 199, 200], [399, 5, 300]])
    assert torch.equal(held.observations["top"][rows], left.observations["top"][rows])
    odd = record(tmp_path / "odd.zarr", size=12)
    with pytest.raises(ValueError, match=r"\(12, 12, 3\).*expected those of .*\(8, 8, 3\)"):
        load_data(settings([both[0], odd]).data)


def test_validation_in_parts_measures_what_it_measures_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = record(tmp_path / "data.zarr")
    trainer = Trainer(settings(data), tmp_path / "run")
    assert trainer.validation is not None
    trainer.policy.eval()
    found = []
    for size in (1000, 17):
        trainer.validation._at_a_time = size
        found.append(trainer.validation(trainer.policy, trainer.optimization.autocast(), 0))
    windows = len(trainer.validation._batch.actions)
    assert windows % -(-windows // 17) == 0, "no window is left out"
    for name, value in found[0].items():
        assert found[1][name] == pytest.approx(value, rel=1e-5)  # sums in another order


class Walk(gymnasium.Env):
    """The walk as an env with two cameras, which deliver as the data do."""

    action_space = spaces.Box(-2.0, 2.0, (1,))

    def __init__(self, size: int = 8) -> None:
        self.size = size
        boxes = {"top": ((size, size, 3), np.uint8, 255), "wrist": ((3, 8, 8), np.float32, 1), "goal": ((1,), "f4", 1)}
        self.observation_space = spaces.Dict(
            {
                key: spaces.Box(-1 if key == "goal" else 0, most, shape, kind)
                for key, (shape, kind, most) in boxes.items()
            }
        )

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> Any:
        super().reset(seed=seed)
        self.position, self.goal = self.np_random.uniform(-1, 1, size=2)
        return self._seen(), {}

    def step(self, action: np.ndarray) -> Any:
        self.position, self.steps = float(action[0]), getattr(self, "steps", 0) + 1
        near = abs(self.position - self.goal) < 0.1
        return self._seen(), 1.0 - abs(self.position - self.goal), False, self.steps % 8 == 0, {"is_success": near}

    def _seen(self) -> dict[str, np.ndarray]:
        wrist = np.moveaxis(pictures(np.array([self.goal - self.position])), -1, 1).astype("f4") / 255
        top = pictures(np.array([self.position]), self.size)[0]
        return {"top": top, "wrist": wrist[0], "goal": np.array([self.goal], "f4")}


def test_it_is_evaluated_in_an_env_with_cameras_as_it_was_trained(tmp_path: Path) -> None:
    if "TwoCameras-v0" not in gymnasium.registry:
        gymnasium.register("TwoCameras-v0", Walk, disable_env_checker=True)
    env = EnvConfig("TwoCameras-v0")
    trained(settings(record(tmp_path / "data.zarr"), env), tmp_path / "run")
    policy = DiffusionPolicy.from_pretrained(tmp_path / "run" / "checkpoints" / "last")
    assert policy.config.observations["wrist"].pixels.channels == "first"
    scores = [report(policy, env, "ddim", seeds, 4)["episodes"] for seeds in ([0, 1, 2], [2])]
    assert scores[0][2] == scores[1][0], "an episode depends on its seed only"
    with pytest.raises(ValueError, match=r"shows 'top' as \[12, 12, 3\].*have \[8, 8, 3\]"):
        check_env(EnvConfig("TwoCameras-v0", {"size": 12}), policy)
