"""Whatever is changed in a file or on a command line is refused in one line, or loaded as it stands."""

from pathlib import Path

import pytest

pytest.importorskip("resource")  # not on Windows

import fuzzing


def check(cases: int, base: Path) -> None:
    found = fuzzing.fuzz(first=0, cases=cases, seed=0, workers=2, kinds=list(fuzzing.KINDS), base=base)
    assert len(found) == cases
    assert fuzzing.faults(found) == [], fuzzing.table(found)


def test_500_changes_are_refused_or_loaded_as_they_stand(tmp_path: Path) -> None:
    check(500, tmp_path)


@pytest.mark.slow
def test_20_000_changes_are_refused_or_loaded_as_they_stand(tmp_path: Path) -> None:
    check(20_000, tmp_path)
