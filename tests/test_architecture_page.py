"""docs/architecture.md and CONTRIBUTING.md name the library's actual rooms, floors and files."""

import re
from pathlib import Path

from one_case import over
from test_layering import FLOOR_OF, FLOORS

REPOSITORY = Path(__file__).parents[1]
PAGE = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
CONTRIBUTING = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
FILES = sorted(
    {
        name
        for name in re.findall(r"`([\w.]+/[\w./]+)`", PAGE + CONTRIBUTING)
        if "NAME" not in name and ".zarr" not in name
    }
)


def test_every_room_stands_on_its_floor():
    rows = re.findall(r"^\| (\d) \| `(\w+)` \|", PAGE, flags=re.MULTILINE)
    assert {room: int(floor) for floor, room in rows} == {k: v for k, v in FLOOR_OF.items() if k != "_version"}


def test_contributing_draws_the_same_floors():
    drawn = re.search(r"## Floors\n.*?\n\n((?: {4}[^\n]*\n)+)", CONTRIBUTING, flags=re.DOTALL)
    assert drawn
    for line, rooms in zip(drawn[1].splitlines(), FLOORS, strict=True):
        assert set(re.findall(r"[a-z]+", re.split(r"\d", line)[0])) == rooms - {"_version"}


@over("name", FILES)
def test_every_file_that_they_name_exists(name: str):
    assert any((REPOSITORY / root / name).exists() for root in (".", "diffpolicy", "envs")), name


def test_the_drawn_window_is_that_of_the_defaults():
    rows = {
        line.split()[0]: line for line in PAGE.splitlines() if line.startswith(("observed ", "planned ", "executed "))
    }
    found = {name: len(re.findall(rf" {mark}\b", rows[name])) for name, mark in zip(rows, "opx", strict=True)}
    assert found == {"observed": 2, "planned": 16, "executed": 8}
    assert rows["executed"].index(" x") + 1 == [m.start() for m in re.finditer(r"\bo\b", rows["observed"])][-1]
