"""The one reader of settings: plain values from a file, a command line or Python into a dataclass of types and ranges.

A range is part of a field's type: `steps: Annotated[int, Range(1, 1000)] = 10`. Numbers are finite and have 64 bits.
"""

import dataclasses
import math
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from diffpolicy.system.plain import shown

Settings = TypeVar("Settings")


@dataclass(frozen=True)
class Range:
    """The values that a number may take: least <= value <= most, and above < value < below."""

    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    below: float = math.inf

    def check(self, value: Any, where: str) -> None:
        """Raise ValueError unless `value` lies within; NaN lies nowhere. None passes."""
        if value is not None and not (self.least <= value <= self.most and self.above < value < self.below):
            raise ValueError(f"{where} {value} must be {self}")

    def __str__(self) -> str:
        if math.isfinite(self.least) and math.isfinite(self.most):
            return f"between {_plain(self.least)} and {_plain(self.most)}"
        bounds = {"at least": self.least, "above": self.above, "at most": self.most, "below": self.below}
        return " and ".join(f"{word} {_plain(bound)}" for word, bound in bounds.items() if math.isfinite(bound))


def _plain(bound: float) -> float:
    """The bound as a whole number if it is one: `typing` takes Range(0) and Range(0.0) for the same annotation."""
    return int(bound) if bound == int(bound) else bound


@dataclass(frozen=True)
class Count:
    """How many entries a list or mapping may have."""

    least: int
    most: int

    def check(self, value: Any, where: str) -> None:
        """Raise ValueError unless it has between `least` and `most` entries."""
        if not self.least <= len(value) <= self.most:
            raise ValueError(f"{where} has {len(value)} entries, expected {self.least} to {self.most}: {shown(value)}")


class OneOf:
    """The values that a text may take; None passes."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def check(self, value: Any, where: str) -> None:
        """Raise ValueError unless `value` is one of the names."""
        if value is not None and value not in self.names:
            raise ValueError(f"{where} {shown(value)} must be one of {', '.join(self.names)}")


def read_settings(schema: type[Settings], content: Any, where: str) -> Settings:
    """Make an instance of the dataclass `schema` from plain values; missing fields take their defaults.

    Raises:
        ValueError: a field is unknown, missing, of the wrong type or out of range; the message names it after `where`.
    """
    return schema(**_values(schema, content, where))


def check_settings(settings: Any, where: str) -> None:
    """Check the types and ranges of the settings in a dataclass, and of those inside it.

    Args:
        where: begins the message of the ValueError, as in `read_settings`; "" if there is nothing around the settings.
    """
    values = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    _values(type(settings), values, where)


def _values(schema: type, content: Any, where: str) -> dict[str, Any]:
    content = _mapping(content, where)
    fields: dict[str, Any] = {field.name: field for field in dataclasses.fields(schema)}
    if unknown := [key for key in content if key not in fields]:
        names = ", ".join(sorted(key if str(key).isidentifier() else shown(key) for key in unknown[:8]))
        raise ValueError(f"{where}: has no setting {names}; it has {', '.join(sorted(fields))}")
    nothing = dataclasses.MISSING
    required = {name for name, field in fields.items() if field.default is field.default_factory is nothing}
    if missing := sorted(required - set(content)):
        raise ValueError(f"{where}: {', '.join(missing)} is missing")
    hints = get_type_hints(schema, include_extras=True)
    return {name: read(hints[name], value, f"{where}: {name}".removeprefix(": ")) for name, value in content.items()}


def read(hint: Any, value: Any, where: str) -> Any:
    """Read one value as the type `hint`; raises ValueError, whose message begins with `where`."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin is Annotated:
        found = read(inner[0], value, where)
        for rule in inner[1:]:
            rule.check(found, where)
        return found
    if origin in (Union, types.UnionType):
        if value is None and type(None) in inner:
            return None
        (hint,) = (one for one in inner if one is not type(None))
        return read(hint, value, where)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        if not isinstance(value, hint):
            return read_settings(hint, value, where)
        check_settings(value, where)
        return value
    if origin in (list, tuple) and isinstance(value, list | tuple):
        return origin(read(inner[0], one, f"{where}[{index}]") for index, one in enumerate(value))
    if origin is dict:
        return {
            _key(key, where): read(inner[1], one, f"{where}[{key!r}]") for key, one in _mapping(value, where).items()
        }
    return _scalar(origin or hint, value, where)


def _scalar(expected: type, value: Any, where: str) -> Any:
    if expected is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63:
        return float(value)
    names = {list: "a list", tuple: "a list", Mapping: "a mapping"}
    if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
        raise ValueError(f"{where} is {shown(value)}, expected {names.get(expected, expected.__name__)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} is {value}, expected a finite number")
    if isinstance(value, int) and abs(value) >= 2**63:
        raise ValueError(f"{where} is {shown(value)}, expected a number of at most 64 bits")
    return value


def _key(key: Any, where: str) -> str:
    if not isinstance(key, str):
        raise ValueError(f"{where} has the key {shown(key)}, expected a text")
    return key


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} is {shown(value)}, expected a mapping")
    return value
