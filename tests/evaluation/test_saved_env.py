"""A checkpoint is data: the env that it names imports nothing, unless the user says so."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import pytest

from diffpolicy.evaluation.saved_env import saved_env

PUSHT = "diffpolicy_envs:diffpolicy/PushT-v0"


def read(trust_env: bool = False, **env: Any) -> Any:
    policy: Any = SimpleNamespace(metadata={"env": env})
    return saved_env(policy, "checkpoint: RUN", trust_env)


@pytest.mark.parametrize("name", [PUSHT, "CartPole-v1"])
def test_our_envs_and_registered_ones_are_taken(name: str) -> None:
    assert read(id=name).id == name


@pytest.mark.parametrize(
    "name",
    ["evil:Env-v0", "diffpolicy_envs.evil:Env-v0", "Unknown-v0", "a:diffpolicy_envs:Env-v0", "GymV26Environment-v0"],
)
def test_what_would_import_a_module_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"^checkpoint: RUN: its env .* trust_env=true"):
        read(id=name)


def test_a_trusted_env_may_name_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "envs_of_a_user.py").write_text("import gymnasium\ngymnasium.register('User/Own-v0', 'nowhere:Env')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="trust_env=true"):
        read(id="envs_of_a_user:User/Own-v0")
    assert "envs_of_a_user" not in sys.modules
    assert read(trust_env=True, id="envs_of_a_user:User/Own-v0").id == "envs_of_a_user:User/Own-v0"
    assert "User/Own-v0" not in gymnasium.registry, "naming an env does not make it"


@pytest.mark.parametrize("env", [{}, {"id": 3}, {"id": PUSHT, "kwargs": []}, {"id": PUSHT, "other": 1}])
def test_an_env_of_the_wrong_form_is_refused(env: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^checkpoint: RUN: env: "):
        read(**env)
