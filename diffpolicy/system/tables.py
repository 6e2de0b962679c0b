"""Tables of choices: each entry has a name, a settings class, and a function that builds the choice from them.

A choice is given as a name ("ddim"), a mapping ({"name": "ddim", "eta": 0.5}) or an instance of the settings.
"""

import dataclasses
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, Union, get_args, get_origin, get_type_hints

Settings = TypeVar("Settings")
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
    if name not in table:
        raise ValueError(f"{kind}: {name!r} is unknown, expected one of {', '.join(sorted(table))}")
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
        raise ValueError(f"{kind}: {choice!r} is not a valid choice; expected a name, or a mapping with a name")
    if not isinstance(content.get("name"), str):
        raise ValueError(f"{kind}: {dict(content)} has no name, expected name: one of {', '.join(sorted(table))}")
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


def read_settings(schema: type[Settings], content: Mapping[str, Any], where: str) -> Settings:
    """Make an instance of the dataclass `schema` from plain values; missing fields take their defaults.

    Raises:
        ValueError: a field is unknown, missing or of the wrong type; the message names it after `where`.
    """
    fields: dict[str, Any] = {field.name: field for field in dataclasses.fields(schema)}  # pyright: ignore
    if unknown := sorted(set(content) - set(fields)):
        raise ValueError(f"{where}: has no setting {', '.join(unknown)}; it has {', '.join(sorted(fields))}")
    nothing = dataclasses.MISSING
    required = {name for name, field in fields.items() if field.default is field.default_factory is nothing}
    if missing := sorted(required - set(content)):
        raise ValueError(f"{where}: {', '.join(missing)} is missing")
    hints = get_type_hints(schema)
    return schema(**{name: _read(hints[name], value, f"{where}: {name}") for name, value in content.items()})


def _read(hint: Any, value: Any, where: str) -> Any:
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in inner:
            return None
        (hint,) = (one for one in inner if one is not type(None))
        return _read(hint, value, where)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else read_settings(hint, _mapping(value, where), where)
    if origin is list and isinstance(value, list | tuple):
        return [_read(inner[0], one, f"{where}[{index}]") for index, one in enumerate(value)]
    if origin is dict:
        return {key: _read(inner[1], one, f"{where}[{key!r}]") for key, one in _mapping(value, where).items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    expected = origin or hint
    if not isinstance(value, expected) or (isinstance(value, bool) and hint is not bool):
        raise ValueError(f"{where} is {value!r}, expected {'a list' if origin is list else expected.__name__}")
    return value


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} is {value!r}, expected a mapping")
    return value
