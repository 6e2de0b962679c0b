"""Tables of choices: each entry has a name, a settings class, and a function that builds the choice from them.

A choice is given as a name ("ddim"), a mapping ({"name": "ddim", "eta": 0.5}) or an instance of the settings.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from diffpolicy.system.plain import shown
from diffpolicy.system.schema import read_settings

Made = TypeVar("Made")
Item = TypeVar("Item")
Choice = Any
"""A name, a mapping with a name, or an entry's settings."""


@dataclass
class NameOnly:
    """Settings of a choice that has none besides its name."""

    name: str


@dataclass(frozen=True)
class Entry(Generic[Made]):
    """One choice in a table.

    Attributes:
        settings: a dataclass with a field `name`.
        make: builds the choice from the settings, its first argument; the table defines the other arguments.
    """

    settings: type
    make: Callable[..., Made]


def lookup(table: Mapping[str, Item], kind: str, name: str) -> Item:
    """The entry called `name`.

    Raises:
        ValueError: there is no such entry; the message lists the known names.
    """
    if not isinstance(name, str) or name not in table:
        raise ValueError(f"{kind}: {shown(name)} is unknown, expected one of {', '.join(sorted(table))}")
    return table[name]


def settings_of(table: Mapping[str, Entry[Any]], kind: str, choice: Choice) -> Any:
    """The settings of `choice`, with defaults for the fields that it leaves out.

    Raises:
        ValueError: the name is unknown, or a setting is unknown, missing or of the wrong type.
    """
    if isinstance(choice, str):
        content: Mapping[str, Any] = {"name": choice}
    elif dataclasses.is_dataclass(choice) and not isinstance(choice, type):
        content = {field.name: getattr(choice, field.name) for field in dataclasses.fields(choice)}
        expected = lookup(table, kind, content.get("name", type(choice).__name__)).settings
        if type(choice) is not expected:
            raise ValueError(
                f"{kind}: {type(choice).__name__} are not the settings of {content['name']}, expected "
                f"{expected.__name__}"
            )
    elif isinstance(choice, Mapping):
        content = choice
    else:
        raise ValueError(f"{kind}: {shown(choice)} is not a valid choice; expected a name, or a mapping with a name")
    if not isinstance(content.get("name"), str):
        raise ValueError(
            f"{kind}: {shown(dict(content))} has no name, expected name: one of {', '.join(sorted(table))}"
        )
    return read_settings(lookup(table, kind, content["name"]).settings, content, f"{kind} {content['name']}")


def is_choice(value: Any) -> bool:
    """Whether `value` is a choice by its type: a name, a mapping, or settings with a name."""
    return isinstance(value, str | Mapping) or (dataclasses.is_dataclass(value) and hasattr(value, "name"))


def made(table: Mapping[str, Entry[Made]], kind: str, choice: Choice, *others: Any) -> Made:
    """Build `choice` from its settings and `others`.

    Raises:
        ValueError: as in `settings_of`.
    """
    settings = settings_of(table, kind, choice)
    return table[settings.name].make(settings, *others)
