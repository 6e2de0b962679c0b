"""Choices: a name, a mapping or settings; what does not fit is refused by name."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from diffpolicy.system.schema import read_settings
from diffpolicy.system.tables import Entry, NameOnly, made, settings_of


@dataclass
class InnerConfig:
    weight: float = 0.0


@dataclass
class WideConfig:
    name: str = "wide"
    widths: list[int] = field(default_factory=lambda: [1, 2])
    rate: float = 0.5
    label: str | None = None
    inner: InnerConfig = field(default_factory=InnerConfig)
    options: dict[str, float] = field(default_factory=dict)
    anything: Any = None
    is_on: bool = False


TABLE = {"wide": Entry(WideConfig, lambda own, scale: scale * sum(own.widths)), "plain": Entry(NameOnly, lambda own: 7)}


def test_a_name_takes_all_defaults_and_is_made_from_them() -> None:
    assert settings_of(TABLE, "thing", "wide") == WideConfig()
    assert made(TABLE, "thing", "wide", 10) == 30
    assert made(TABLE, "thing", "plain") == 7


def test_a_mapping_and_settings_change_what_they_name() -> None:
    expected = WideConfig(widths=[5], rate=1.0, inner=InnerConfig(2.0))
    mapping = {"name": "wide", "widths": [5], "rate": 1, "inner": {"weight": 2}}  # whole numbers serve as floats
    for choice in (mapping, expected):
        found = settings_of(TABLE, "thing", choice)
        assert found == expected
        assert isinstance(found.rate, float)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("thin", "thing: 'thin' is unknown, expected one of plain, wide"),
        ({"widths": [1]}, r"thing: .* has no name, expected name: one of plain, wide"),
        (3, "thing: 3 is not a valid choice; expected a name, or a mapping with a name"),
        ({"name": "wide", "width": 1}, "thing wide: has no setting width; it has .*widths"),
        ({"name": "plain", "rate": 1.0}, "thing plain: has no setting rate; it has name"),
        ({"name": "wide", "rate": "fast"}, "thing wide: rate is 'fast', expected float"),
        ({"name": "wide", "rate": True}, "thing wide: rate is True, expected float"),
        ({"name": "wide", "widths": [1.5]}, r"thing wide: widths\[0\] is 1.5, expected int"),
        ({"name": "wide", "widths": 3}, "thing wide: widths is 3, expected a list"),
        ({"name": "wide", "inner": {"weigth": 1.0}}, "thing wide: inner: has no setting weigth; it has weight"),
        ({"name": "wide", "inner": 1}, "thing wide: inner is 1, expected a mapping"),
        ({"name": "wide", "is_on": 1}, "thing wide: is_on is 1, expected bool"),
        ({"name": "wide", "options": {"a": "b"}}, r"thing wide: options\['a'\] is 'b', expected float"),
        (NameOnly("wide"), "thing: NameOnly are not the settings of wide, expected WideConfig"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(choice: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings_of(TABLE, "thing", choice)


def test_a_field_without_a_default_must_be_there() -> None:
    with pytest.raises(ValueError, match="checkpoint: name is missing"):
        read_settings(NameOnly, {}, "checkpoint")
