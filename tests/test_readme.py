"""README.md and the docs pages are correct: programs run, links resolve, commands and imports work."""

import pkgutil
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import run_command
from one_case import over
from walk import PATIENCE_S

REPOSITORY = Path(__file__).parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"]
PAGES += sorted(path.relative_to(REPOSITORY).as_posix() for path in REPOSITORY.glob("docs/**/*.md"))
TEXTS = {page: (REPOSITORY / page).read_text(encoding="utf-8") for page in PAGES}
README = TEXTS["README.md"]
ORDER = ("Install", "Act with the shipped checkpoint", "Train", "Your own data", "Safety", "Evaluate and benchmark")
ORDER += ("Where things are", "Links")

WITH_COMMANDS = ("README.md", "docs/training.md", "docs/benchmarks.md")
COMMANDS = sorted(
    {
        command.replace("SCENE", "random")
        for page in WITH_COMMANDS
        for command in re.findall(r"^python (scripts/\S+ .*?) *(?:#.*)?$", TEXTS[page], flags=re.MULTILINE)
    }
)

FENCED = "".join(re.findall(r"```.*?```", README, flags=re.DOTALL))
DATA = sorted(set(re.findall(r"(?<![\w/])data/[\w./-]+", FENCED)))
NOW = re.sub(r"^\| `from [^|]*\|", "", "\n".join(TEXTS.values()), flags=re.MULTILINE)  # not the changelog's "before"
IMPORTS = sorted(set(re.findall(r"from (diffpolicy[\w.]*) import ([\w, ]+)", NOW)))


def run(command: list[str], **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=REPOSITORY, **options)


def test_it_is_short_and_in_order():
    assert len(README.splitlines()) <= 140
    assert tuple(re.findall(r"^## (.*)$", README, flags=re.MULTILINE)) == ORDER


def test_its_python_programs_run_one_after_the_other(shipped_checkpoint: Path, tmp_path: Path):
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) == 3
    program = "\n".join(blocks)
    for written, here in (
        ('"data/checkpoints/pusht"', f'"{(shipped_checkpoint.parent / "pusht").as_posix()}"'),
        ("runs/pusht", (tmp_path / "run").as_posix()),
        ("steps=2000", "steps=2"),
    ):
        assert written in program
        program = program.replace(written, here)
    done = run(["-c", program], timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^coverage [01]\.\d\d, success (True|False)$", done.stdout, flags=re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_its_commands_are_understood(command: str):
    script, *settings = shlex.split(command)
    done = run_command.run(script.removeprefix("scripts/"), *settings, "--cfg", "job")
    assert done.returncode == 0, done.stderr


def test_the_targets_of_make_that_it_names_exist():
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    named = {word for text in TEXTS.values() for word in re.findall(r"(?:^|`| {4})make ([a-z]+)\b", text, re.MULTILINE)}
    assert {"train", "test", "docs"} <= named
    assert [name for name in named if not re.search(rf"^{name}:", makefile, re.MULTILINE)] == []


@over("module, names", IMPORTS)
def test_what_the_pages_import_exists(module: str, names: str):
    for name in names.split(", "):
        assert pkgutil.resolve_name(f"{module}:{name.strip()}") is not None


def test_the_data_that_its_commands_and_programs_name_exist():
    assert {"data/checkpoints/pusht", "data/checkpoints/pusht_small"} <= set(DATA)
    assert [path for path in DATA if not (REPOSITORY / path).exists()] == []


def test_it_has_no_placeholder_left():
    assert re.findall(r"<!--.*", README) == []


@over("page", PAGES)
def test_links_within_the_repository_lead_somewhere(page: str):
    path = REPOSITORY / page
    text = re.sub(r"<!--.*?-->", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = [link.partition("#") for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    headings = {re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in re.findall(r"^#+ (.*)$", text, re.M)}
    for target, _, anchor in links:
        assert (path.parent / target).exists(), f"{page} links to {target}"
        assert target or anchor in headings, f"{page} links to #{anchor}"


def test_the_folders_it_draws_exist():
    (tree,) = re.findall(r"## Where things are\n\n```\n(.*?)```", README, flags=re.DOTALL)
    for line in tree.splitlines():
        name = line.split()[0]
        if name.endswith("/"):
            folder = "diffpolicy" if line.startswith("  ") else "."
            assert (REPOSITORY / folder / name).is_dir(), name
        else:
            assert all((REPOSITORY / "diffpolicy" / word).exists() for word in line.split() if word.endswith(".py"))
