"""What is read from disk is of its type and within its range, or is refused in one line that says where it stands."""

import math
from dataclasses import dataclass, field
from typing import Annotated, Any

import pytest
from one_case import over

from diffpolicy.system.plain import difference, parsed, shown
from diffpolicy.system.schema import Count, OneOf, Range, check_settings, read_settings


@dataclass
class Inner:
    share: Annotated[float, Range(least=0, below=1)] = 0.0


@dataclass
class Outer:
    steps: Annotated[int, Range(1, 100)]
    rate: Annotated[float, Range(above=0)] = 1.0
    kind: Annotated[str, OneOf("a", "b")] = "a"
    sizes: Annotated[list[Annotated[int, Range(least=1)]], Count(1, 3)] = field(default_factory=lambda: [1])
    inner: Inner = field(default_factory=Inner)
    limit: Annotated[int | None, Range(most=9)] = None
    counts: dict[str, int] = field(default_factory=dict)
    pair: tuple[int, ...] = ()


def test_what_fits_is_read_with_defaults_and_whole_numbers_as_floats() -> None:
    found = read_settings(Outer, {"steps": 100, "rate": 2, "inner": {"share": 0.5}, "pair": [1, 2]}, "file")
    assert found == Outer(100, 2.0, inner=Inner(0.5), pair=(1, 2))
    assert isinstance(found.rate, float)
    check_settings(found, "file")


def test_settings_made_in_python_are_checked_at_any_depth() -> None:
    with pytest.raises(ValueError, match=r"^file: inner: share 1.0 must be at least 0 and below 1$"):
        check_settings(Outer(1, inner=Inner(1.0)), "file")
    with pytest.raises(ValueError, match=r"^inner: share 1.0 must be at least 0 and below 1$"):
        check_settings(Outer(1, inner=Inner(1.0)), "")


@over(
    "content, message",
    [
        ({}, "file: steps is missing"),
        ([], "file is [], expected a mapping"),
        (None, "file is None, expected a mapping"),
        ({"steps": 0}, "file: steps 0 must be between 1 and 100"),
        ({"steps": 1.5}, "file: steps is 1.5, expected int"),
        ({"steps": True}, "file: steps is True, expected int"),
        ({"steps": None}, "file: steps is None, expected int"),
        ({"steps": 2**63}, "file: steps is 9223372036854775808, expected a number of at most 64 bits"),
        ({"steps": 1, "step": 1}, "file: has no setting step; it has "),
        ({"steps": 1, "rate": 0}, "file: rate 0.0 must be above 0"),
        ({"steps": 1, "rate": math.nan}, "file: rate is nan, expected a finite number"),
        ({"steps": 1, "rate": math.inf}, "file: rate is inf, expected a finite number"),
        ({"steps": 1, "kind": "c"}, "file: kind 'c' must be one of a, b"),
        ({"steps": 1, "sizes": []}, "file: sizes has 0 entries, expected 1 to 3: []"),
        ({"steps": 1, "sizes": [1, 0]}, "file: sizes[1] 0 must be at least 1"),
        ({"steps": 1, "sizes": "12"}, "file: sizes is '12', expected a list"),
        ({"steps": 1, "inner": {"share": 1.0}}, "file: inner: share 1.0 must be at least 0 and below 1"),
        ({"steps": 1, "limit": 10}, "file: limit 10 must be at most 9"),
        ({"steps": 1, "counts": {1: 1}}, "file: counts has the key 1, expected a text"),
    ],
)
def test_what_does_not_fit_is_refused_and_named(content: Any, message: str) -> None:
    with pytest.raises(ValueError) as error:
        read_settings(Outer, content, "file")
    assert str(error.value).startswith(message)


def test_nan_is_in_no_range() -> None:
    for range_ in (Range(), Range(least=0), Range(above=0), Range(0, 1)):
        with pytest.raises(ValueError, match="must be"):
            range_.check(math.nan, "x")


@over(
    "data, message",
    [
        (b'{"a": 1, "a": 2}', "key 'a' appears twice in one object"),
        (b'{"a": NaN}', "NaN is not a finite number"),
        (b"[1e999]", "1e999 is not a finite number"),
        (b"[" * 101 + b"]" * 101, "nested too deeply"),
        (b"[" * 100_000, "nested too deeply"),
        (b"1" * 10_000, "not valid JSON"),
        (b"\xff", "not valid JSON"),
        (b"{", "not valid JSON"),
    ],
)
def test_json_is_read_strictly(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        parsed(data, "the file")
    assert str(error.value).startswith("the file")
    assert len(str(error.value).splitlines()) == 1


def test_a_value_is_shown_on_one_short_line() -> None:
    deep: list[Any] = []
    for _ in range(500):
        deep = [deep]
    for value in ("a\nb" * 1000, deep, {str(i): "x" * 100 for i in range(1000)}, 10**1000):
        assert len(shown(value)) <= 200
        assert "\n" not in shown(value)


def test_the_first_difference_is_told_with_its_path() -> None:
    before = {"a": {"b": [1, 2]}, "c": 1}
    assert difference({"a": {"b": (1, 2)}, "c": 1.0}, before) is None
    assert difference({"a": {"b": [1, 3]}, "c": 1}, before) == "a.b[1] is 3, expected 2"
    assert difference({"a": {}, "c": 1}, before) == "a.b is missing"
    assert difference({**before, "d": 1}, before) == "d is unknown"
    assert difference({**before, "c": True}, before) == "c is True, expected 1"
