"""docs/diffusion.md: its numbers are right, its names exist, and its figures are there."""

import doctest
import pkgutil
import re
from pathlib import Path

from diffpolicy.policy.objective_choices import SCHEDULES
from diffpolicy.policy.sampler_choices import SAMPLERS

PAGE = Path(__file__).parents[1] / "docs" / "diffusion.md"
TEXT = PAGE.read_text(encoding="utf-8")


def test_the_worked_numbers_come_out() -> None:
    found = doctest.testfile(str(PAGE), module_relative=False)
    assert found.attempted >= 15
    assert found.failed == 0


def test_every_function_that_the_lenses_name_exists() -> None:
    lenses = TEXT[TEXT.index("| lens |") : TEXT.index("One network serves")].splitlines()[2:6]
    names = [name for lens in lenses for name in re.findall(r"`([\w.]+)`", lens.rsplit("|", 2)[1])]
    assert len(names) >= 16
    for name in names:
        assert pkgutil.resolve_name(f"diffpolicy.diffusion.{name}") is not None


def test_every_schedule_and_sampler_is_on_the_page() -> None:
    for name in [*SCHEDULES, *SAMPLERS]:
        assert re.search(rf"\b{name}\b", TEXT), name


def test_every_figure_is_there() -> None:
    figures = re.findall(r"!\[.*?\]\((.*?)\)", TEXT)
    assert len(figures) == 3
    assert all((PAGE.parent / figure).is_file() for figure in figures)
