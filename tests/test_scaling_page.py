"""docs/scaling.md: its arithmetic is right, and its settings exist."""

import doctest
import re
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from one_case import over

from diffpolicy.training.schemas import register_choices
from diffpolicy.training.settings import TrainConfig

REPOSITORY = Path(__file__).parents[1]
PAGE = REPOSITORY / "docs" / "scaling.md"
TEXT = PAGE.read_text(encoding="utf-8").replace("\\\n", " ")
COMMANDS = re.findall(r"scripts/train_policy\.py ([^`\n|]*)", TEXT)


def test_the_arithmetic_comes_out() -> None:
    found = doctest.testfile(str(PAGE), module_relative=False)
    assert found.attempted >= 3
    assert found.failed == 0


@over("command", sorted(set(COMMANDS)))
def test_its_settings_exist(command: str) -> None:
    overrides = [word.strip("'") for word in re.findall(r"'[^']*'|[^\s']\S*", command)]
    overrides = [word for word in overrides if "=" in word and not word.startswith(("hydra.", "hydra/"))]
    single = [re.sub(r"=(\w+)(,\w+)+$", r"=\1", word) for word in overrides]
    ConfigStore.instance().store(name="train_schema", node=TrainConfig)
    register_choices()
    with initialize_config_dir(str(REPOSITORY / "configs"), version_base="1.3"):
        compose("train", overrides=single)


def test_every_launcher_that_it_names_is_in_the_extra() -> None:
    project = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    for name in set(re.findall(r"hydra/launcher=([a-z]+)", TEXT)):
        assert f"hydra-{name}-launcher" in project
