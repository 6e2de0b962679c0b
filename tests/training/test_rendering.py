"""Observations drawn by an env from stored states: drawn once, whole whatever happens, and those of the env itself."""

import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from one_case import over

from diffpolicy.data.replay_buffer import ReplayBuffer
from diffpolicy.evaluation.settings import EnvConfig
from diffpolicy.training import rendering
from diffpolicy.training.data_formats import load_data
from diffpolicy.training.settings import DataConfig

LENGTHS = (5, 8, 6)
PUSHT = EnvConfig("diffpolicy_envs:diffpolicy/PushT-v0", {"obs_type": "pixels_agent_pos"})
VIEW = {"images": {"pixels": {}}, "observations": {"pixels": ["pixels"], "pos": ["state[:2]"]}}


class Lamp(gymnasium.Env):
    """Shows its state as brightness, and counts what it has drawn."""

    observation_space = spaces.Dict({"pixels": spaces.Box(0, 255, (8, 8, 3), np.uint8)})
    action_space = spaces.Box(-1.0, 1.0, (2,))
    drawn = 0
    fails_after: float = np.inf
    error: Exception = OSError("no space left on device")

    def observe_state(self, state: np.ndarray) -> dict[str, np.ndarray]:
        Lamp.drawn += 1
        if Lamp.drawn > Lamp.fails_after:
            raise self.error
        return {"pixels": np.full((8, 8, 3), int(state.sum()), np.uint8)}


@pytest.fixture(autouse=True)
def lamp(monkeypatch: pytest.MonkeyPatch) -> EnvConfig:
    monkeypatch.setattr(Lamp, "drawn", 0)
    monkeypatch.setattr(Lamp, "fails_after", np.inf)
    monkeypatch.setattr(rendering, "ROWS_PER_TASK", 1)
    if "Lamp-v0" not in gymnasium.registry:
        gymnasium.register("Lamp-v0", Lamp)
    return EnvConfig("Lamp-v0")


def states(folder: Path, offset: float = 0.0) -> Path:
    path = folder / f"states{offset:g}.zarr"
    if not path.exists():
        buffer = ReplayBuffer.create(path, {"action": ((2,), "f4"), "state": ((5,), "f4")})
        for episode, length in enumerate(LENGTHS):
            state = np.linspace([0, 20, 30, 0, 0], [60, 40, 60, 9, 6], length) + offset
            buffer.append_episode({"action": np.zeros((length, 2)), "state": state + episode})
    return path


def config(folder: Path, **changes: object) -> DataConfig:
    data = {"render": {"pixels": ["state"]}, "cache": str(folder / "cache"), "workers": 0, **VIEW, **changes}
    return DataConfig(str(states(folder)), **data)  # type: ignore[arg-type]


def shown(folder: Path, env: EnvConfig, **changes: object) -> torch.Tensor:
    found = load_data(config(folder, **changes), env).observations["pixels"]
    return found if isinstance(found, torch.Tensor) else torch.cat(list(found.split(7)))


def expected(folder: Path, rows: int = sum(LENGTHS)) -> np.ndarray:
    levels = ReplayBuffer.open(states(folder))["state"][:rows].sum(1).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (rows, 8, 8, 3))


def test_frames_are_drawn_once_and_more_episodes_are_added(tmp_path: Path, lamp: EnvConfig) -> None:
    np.testing.assert_array_equal(shown(tmp_path, lamp, episodes=2), expected(tmp_path, 13))
    assert Lamp.drawn == 1 + 13, "one to find mistakes"
    np.testing.assert_array_equal(shown(tmp_path, lamp, episodes=2, stream=["pixels"]), expected(tmp_path, 13))
    assert Lamp.drawn == 2 + 13
    np.testing.assert_array_equal(shown(tmp_path, lamp), expected(tmp_path))
    assert Lamp.drawn == 3 + 19
    np.testing.assert_array_equal(shown(tmp_path, lamp, episodes=1), expected(tmp_path, 5))
    assert Lamp.drawn == 4 + 19


def test_other_states_and_another_version_are_drawn_elsewhere(
    tmp_path: Path, lamp: EnvConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown(tmp_path, lamp)
    load_data(DataConfig(**{**vars(config(tmp_path)), "path": str(states(tmp_path, 1.0))}), lamp)
    monkeypatch.setattr(Lamp, "metadata", {"render_modes": [], "observe_version": 2})
    shown(tmp_path, lamp)
    assert len(list((tmp_path / "cache" / "rendered").glob("Lamp-v0-*.zarr"))) == 3


def test_after_an_error_whole_episodes_are_kept_and_it_goes_on(
    tmp_path: Path, lamp: EnvConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Lamp, "fails_after", 1 + 5 + 3)
    with pytest.raises(OSError, match=r"rendering into .*no space left.*the same command goes on.*data.cache=FOLDER"):
        shown(tmp_path, lamp)
    (path,) = (tmp_path / "cache" / "rendered").glob("*.zarr")
    assert ReplayBuffer.open(path).n_episodes == 1
    monkeypatch.setattr(Lamp, "fails_after", np.inf)
    before = Lamp.drawn
    np.testing.assert_array_equal(shown(tmp_path, lamp), expected(tmp_path))
    assert Lamp.drawn == before + 1 + 8 + 6


def test_a_damaged_cache_is_drawn_again(tmp_path: Path, lamp: EnvConfig) -> None:
    shown(tmp_path, lamp)
    (path,) = (tmp_path / "cache" / "rendered").glob("*.zarr")
    (path / "zarr.json").write_text("{")
    np.testing.assert_array_equal(shown(tmp_path, lamp), expected(tmp_path))
    chunk = path / "data" / "pixels" / "c" / "0" / "0" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-9])
    with pytest.raises(ValueError, match=f"to have it made again, remove {path}"):
        shown(tmp_path, lamp)


SCRIPT = """
import sys
from diffpolicy.evaluation.settings import EnvConfig
from diffpolicy.training.data_formats import load_data
from diffpolicy.training.settings import DataConfig
path, cache = sys.argv[1:]
if __name__ == "__main__":
    data = DataConfig(path, render={"pixels": ["state"]}, cache=cache, workers=2, images={"pixels": {}},
                      observations={"pixels": ["pixels"]})
    print(load_data(data, EnvConfig(*eval(sys.stdin.read()))).observations["pixels"].long().sum().item())
"""


def test_two_processes_at_once_draw_the_frames_of_the_env(tmp_path: Path) -> None:
    script = tmp_path / "load.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(states(tmp_path)), str(tmp_path / "cache")]
    pipe = subprocess.PIPE
    both = [subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) for _ in range(2)]
    answers = [process.communicate(repr((PUSHT.id, PUSHT.kwargs))) for process in both]
    found = shown(tmp_path, PUSHT)
    for process, (out, error) in zip(both, answers, strict=True):
        assert process.returncode == 0, error
        assert int(out) == int(found.long().sum())
    env = gymnasium.make(PUSHT.id, **PUSHT.kwargs)
    env.reset(seed=0)
    state = np.array([60, 40, 60, 9, 6.0])
    seen, info = env.reset(options={"state": state.tolist()})
    np.testing.assert_array_equal(found[4].numpy(), env.unwrapped.observe_state(state)["pixels"])
    np.testing.assert_array_equal(seen["pixels"], env.unwrapped.observe_state(info["state"])["pixels"])


@over(
    "changes, env, message",
    [
        ({}, None, "data: render needs the env"),
        ({"render": {"state": ["state"]}}, "Lamp-v0", "names state, which the data set has"),
        ({"render": {"pixels": ["pose"]}}, "Lamp-v0", r"names \['pose'\]; the data set has"),
        ({"render": {"top": ["state"]}}, "Lamp-v0", r"observes \['pixels'\], not 'top'"),
        ({}, "CartPole-v1", r"has no method observe_state\(state\), see docs/data_format.md"),
        ({}, "Nowhere-v0", "cannot be made"),
        ({"render": {"pixels": "state"}}, "Lamp-v0", "expected a list"),
        ({"episodes": 0}, "Lamp-v0", "episodes 0 must be between 1 and"),
    ],
)
def test_what_cannot_be_drawn_is_refused(tmp_path: Path, changes: dict, env: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_data(config(tmp_path, **changes), env and EnvConfig(env))
