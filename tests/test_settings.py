"""Every whole number among the settings has a largest value, so that none takes all memory or for ever."""

import dataclasses
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest

import diffpolicy.commands
from diffpolicy.policy import build, objective_choices, sampler_choices
from diffpolicy.system.schema import Range
from diffpolicy.system.tables import Entry

COMMANDS = sorted(path.stem for path in Path(diffpolicy.commands.__path__[0]).glob("*.py") if path.stem != "__init__")
MODULES = (build, objective_choices, sampler_choices)
TABLES = [table for module in MODULES for table in vars(module).values() if isinstance(table, dict)]


def schemas() -> Iterator[type]:
    """The settings of all commands, and of all entries of tables."""
    for name in COMMANDS:
        module = importlib.import_module(f"diffpolicy.commands.{name}")
        yield from (one for one in vars(module).values() if is_schema(one) and one.__name__.endswith("Config"))
    yield from (entry.settings for table in TABLES for entry in table.values() if isinstance(entry, Entry))


def is_schema(one: Any) -> bool:
    return isinstance(one, type) and dataclasses.is_dataclass(one)


def unbounded(hint: Any, most: float = float("inf")) -> Iterator[Any]:
    """The whole numbers, and the schemas, inside a type."""
    if get_origin(hint) is Annotated:
        hint, *rules = get_args(hint)
        most = min([most, *(rule.most for rule in rules if isinstance(rule, Range))])
    if (hint is int and most == float("inf")) or is_schema(hint):
        yield hint
    for inner in get_args(hint):
        yield from unbounded(inner, most)


def test_every_whole_number_has_a_largest_value() -> None:
    left, seen, found = list(schemas()), set[type](), []
    while left:
        schema = left.pop()
        if schema in seen:
            continue
        seen.add(schema)
        for name, hint in get_type_hints(schema, include_extras=True).items():
            for one in unbounded(hint):
                if one is int:
                    found.append(f"{schema.__name__}.{name}")
                else:
                    left.append(one)
    assert len(seen) > 40
    assert found == []


def test_the_search_sees_what_it_looks_for() -> None:
    assert [*unbounded(list[int])] == [*unbounded(int | None)] == [int]
    assert [*unbounded(Annotated[int, Range(least=0)])] == [int]
    assert [*unbounded(Annotated[int | None, Range(0, 9)])] == [*unbounded(list[Annotated[int, Range(0, 9)]])] == []
    with pytest.raises(StopIteration):
        next(unbounded(float))
