"""Every command explains itself: --help tells what it does, how it is called, and what can be set."""

import ast
import importlib
from pathlib import Path

import pytest
from one_case import over
from run_command import REPOSITORY, run

TASKS = sorted(path.stem for path in (REPOSITORY / "configs" / "task").glob("*.yaml"))
SCRIPTS = sorted((REPOSITORY / "scripts").glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_help_is_the_commands_own_text_with_groups_settings_and_flags(script: Path) -> None:
    result = run(script.name, "--help")
    assert result.returncode == 0, result.stderr
    usage = importlib.import_module(f"diffpolicy.commands.{script.stem}").__doc__
    assert usage is not None
    assert result.stdout.strip().startswith(usage.strip())
    assert f"python scripts/{script.name}" in usage
    for part in (f"\ntask: {', '.join(TASKS)}\n", "\n== Settings", "\n--config-dir DIR "):
        assert part in result.stdout


@over("script", SCRIPTS)
def test_a_script_says_in_one_line_what_its_command_says_first(script: Path) -> None:
    command = REPOSITORY / "diffpolicy" / "commands" / script.name
    line, usage = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) for path in (script, command))
    assert usage is not None
    assert line == usage.splitlines()[0]


def test_the_settings_shown_are_those_of_the_arguments() -> None:
    result = run("train_policy.py", "task=reach", "trainer.steps=77", "--help")
    assert "task: reach\n" in result.stdout
    assert "  steps: 77\n" in result.stdout


def test_a_key_that_does_not_exist_is_named_with_its_place() -> None:
    result = run("train_policy.py", "trainer.step=5")
    assert result.returncode == 1
    assert result.stderr == "error: trainer.step is not a setting; the nearest is trainer.steps\n"
