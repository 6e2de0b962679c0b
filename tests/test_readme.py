"""What README.md says is true: its programs run, its links lead somewhere, its commands are understood."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import run_command

REPOSITORY = Path(__file__).parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"]
PAGES += [f"docs/{name}.md" for name in ("data_format", "diffusion", "safety", "scaling")]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
COMMANDS = sorted(set(re.findall(r"^python (scripts/\S+ .*?) *(?:#.*)?$", README, flags=re.MULTILINE)))

FENCED = "".join(re.findall(r"```.*?```", README, flags=re.DOTALL))
DATA = sorted(set(re.findall(r"(?<![\w/])data/[\w./-]+", FENCED)))


def run(command: list[str], **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=REPOSITORY, **options)


def test_its_python_programs_run_one_after_the_other(shipped_checkpoint: Path):
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) >= 2
    program = "\n".join(blocks).replace("data/checkpoints/pusht_small", shipped_checkpoint.as_posix())
    done = run(["-c", program], timeout=120)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 20  # one action a tick


@pytest.mark.parametrize("command", COMMANDS)
def test_its_commands_are_understood(command: str):
    script, *settings = shlex.split(command)
    done = run_command.run(script.removeprefix("scripts/"), *settings, "--cfg", "job")
    assert done.returncode == 0, done.stderr


def test_the_data_that_its_commands_and_programs_name_exist():
    assert "data/checkpoints/pusht_small" in DATA
    assert [path for path in DATA if not (REPOSITORY / path).exists()] == []


def test_it_has_no_placeholder_left():
    assert re.findall(r"<!--.*", README) == []


@pytest.mark.parametrize("page", PAGES)
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
