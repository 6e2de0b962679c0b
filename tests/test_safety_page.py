"""docs/safety.md: its examples give the stated results, and its names exist."""

import doctest
import pkgutil
import re
from pathlib import Path

from diffpolicy.constraints.assumptions import Assumptions
from diffpolicy.constraints.fallback import RUNGS
from diffpolicy.safety.settings import MODES

PAGE = Path(__file__).parents[1] / "docs" / "safety.md"
TEXT = PAGE.read_text(encoding="utf-8")


def test_the_examples_come_out() -> None:
    found = doctest.testfile(str(PAGE), module_relative=False)
    assert found.attempted >= 25
    assert found.failed == 0


def test_every_rung_mode_and_bound_is_on_the_page() -> None:
    bounds = [name for name in vars(Assumptions()) if name != "tolerance"]
    for name in (*RUNGS, *MODES, *bounds):
        assert re.search(rf"\b{name}\b", TEXT), name


def test_what_it_imports_exists() -> None:
    names = re.findall(r"from (diffpolicy[\w.]+) import ([\w, ]+)", TEXT)
    assert len(names) >= 5
    for module, imported in names:
        for name in imported.split(", "):
            assert pkgutil.resolve_name(f"{module}.{name}") is not None
