"""The adversarial benchmark: its files, and what it refuses."""

import csv
import json
from pathlib import Path

from one_case import over
from run_command import error_of, run


def test_every_scenario_gives_a_row_and_all_of_them_a_sum(tmp_path: Path) -> None:
    settings = ["scenarios=[shipped,workspace]", "certified=60", "robots=5"]
    result = run("benchmark_adversary.py", *settings, f"hydra.run.dir={tmp_path}")
    assert result.returncode == 0, result.stderr
    rows = json.loads((tmp_path / "benchmark_adversary.json").read_text(encoding="utf-8"))["rows"]
    assert [row["scenario"] for row in rows] == ["shipped", "workspace"]
    for row in rows:
        assert 30 <= row["certified"] <= row["ticks"]
        assert row["violations"] == 0, row
        assert row["over_speed"] < 0
    assert rows[0]["over_workspace"] is None
    assert rows[1]["over_workspace"] < 0
    with (tmp_path / "benchmark_adversary.csv").open(encoding="utf-8") as file:
        assert [row["certified"] for row in csv.DictReader(file)] == [str(row["certified"]) for row in rows]
    table = (tmp_path / "benchmark_adversary.md").read_text(encoding="utf-8")
    assert table in result.stdout
    assert f"| all | {rows[0]['ticks'] + rows[1]['ticks']} |" in table


@over(
    "override, message",
    [
        ("scenarios=[nowhere]", "scenario: 'nowhere' is unknown, expected one of"),
        ("scenarios=[]", "scenarios: none given"),
        ("certified=0", "certified 0 must be between 1 and 1000000000"),
        ("seed=-1", "seed -1 must be between 0 and 4000000000"),
    ],
)
def test_what_cannot_be_run_is_refused(tmp_path: Path, override: str, message: str) -> None:
    assert message in error_of("benchmark_adversary", tmp_path, override)
