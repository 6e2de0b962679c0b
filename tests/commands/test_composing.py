"""Values that hydra stumbles over end in one line, and a bug of a command keeps its traceback."""

import os

import pytest
from hydra import compose, initialize_config_dir
from one_case import over

from diffpolicy.commands import train_policy  # noqa: F401  stores its schema
from diffpolicy.commands.composing import RAISE, composing
from diffpolicy.system.shipped import CONFIGS


@over("override", ["sampler=[1]", "task=[[8]]", "env.id=3", "model=nosuch", "trainer.steps=ten"])
def test_what_cannot_be_composed_is_said_without_a_traceback(override: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit, match="1"), composing(list), initialize_config_dir(str(CONFIGS), version_base="1.3"):
        compose("train", ["task=custom", "data.path=x", override])
    said = capsys.readouterr().err
    assert said
    assert "Traceback" not in said
    assert RAISE not in os.environ


def test_a_bug_of_a_command_is_raised() -> None:
    def run_job() -> None:  # as hydra calls its function
        raise TypeError("a bug")

    with pytest.raises(TypeError, match="a bug"), composing(list):
        run_job()
