"""A data set whose steps are not as long as the ticks of the env is trained on with a warning that names both."""

import re
import warnings
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import pytest
from one_case import over

from diffpolicy.evaluation.settings import EnvConfig
from diffpolicy.formats.convert import convert
from diffpolicy.formats.table import open_recording
from diffpolicy.training.control_rate import control_rate
from diffpolicy.training.data_formats import load_data
from diffpolicy.training.settings import DataConfig

pytest.importorskip("pyarrow")

FIXTURE = Path(__file__).parents[1] / "formats" / "fixtures" / "lerobot_v3_png"  # 10 steps per second
SEEN = {"state": ["observation.state"]}


class Quick(gymnasium.Env):
    metadata: ClassVar[dict[str, Any]] = {"render_fps": 50}


class Silent(gymnasium.Env):
    pass


gymnasium.register("Quick-v0", Quick)
gymnasium.register("Silent-v0", Silent)


def data(path: Path, name: str) -> DataConfig:
    return DataConfig(str(path), format=name, observations=SEEN)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("converted") / "out.zarr"
    convert(open_recording(str(FIXTURE), "lerobot"), output, "zarr")
    return output


@over("name", ["lerobot", "zarr"])
def test_another_rate_is_warned_of(name: str, converted: Path) -> None:
    path = FIXTURE if name == "lerobot" else converted
    told = rf"data: {re.escape(str(path))} has 10 steps per second, but Quick-v0 has 50 \(its render_fps\)"
    with pytest.warns(UserWarning, match=told):
        load_data(data(path, name), EnvConfig("Quick-v0"))


@over("env", ["diffpolicy_envs:diffpolicy/PushT-v0", "Silent-v0", "Missing-v0", "no_such_module:Env-v0", None])
def test_the_same_rate_or_none_is_not(env: str | None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_data(data(FIXTURE, "lerobot"), None if env is None else EnvConfig(env))


def test_the_rate_of_an_env_is_known_without_making_one() -> None:
    assert control_rate(EnvConfig("diffpolicy_envs:diffpolicy/PushT-v0")) == 10.0
    assert control_rate(EnvConfig("Quick-v0")) == 50.0
