"""`one_case.over` runs a test for every entry of a table, and a failure names its entry."""

import pytest
from one_case import over


def test_every_entry_runs_and_a_failure_names_its_entry() -> None:
    seen = []

    @over("b", [3, 4])
    @over("a", {"one": 1, "two": 2})
    def run(a: int, b: int) -> None:
        seen.append((a, b))
        assert (a, b) != (2, 4)

    with pytest.raises(AssertionError) as caught:
        run()
    assert seen == [(1, 3), (2, 3), (1, 4), (2, 4)]
    assert caught.value.__notes__ == ["a: two", "b: 4"]
