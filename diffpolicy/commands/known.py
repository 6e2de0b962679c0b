"""Settings that no command reads are refused: hydra accepts them after a plus, and a task may bring those of others."""

import dataclasses
import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args, get_type_hints

from omegaconf import DictConfig, OmegaConf

from diffpolicy.training.schemas import GROUPS

UNUSED: Mapping[str, Any] = {"is_unused": True}
"""Metadata of a field that a task sets for other commands; on the command line it is refused."""


def check_known(settings: DictConfig, schema: type, overrides: Sequence[str]) -> None:
    """Check the composed settings of a command, and the `overrides` from its command line, such as "seed=1".

    Raises:
        ValueError: a setting is unknown, or one that the command does not use is given; the message names the nearest.
    """
    if unknown := next(_unknown(settings, ""), None):
        raise ValueError(f"{unknown} is not a setting; {nearest(unknown, schema)}")
    fields = {field.name: field for field in dataclasses.fields(schema)}
    for override in overrides:
        name = key_of(override).split(".")[0]
        if name in fields and fields[name].metadata == UNUSED:
            raise ValueError(f"{key_of(override)}: this command does not use {name}; leave it out")


def hints(arguments: Sequence[str], schema: type) -> list[str]:
    """A sentence on each setting in the arguments of a command line that its schema does not have."""
    known = set(_known(schema, ""))
    inner = {name.rpartition(".")[0] for name in known}  # settings that have settings of their own
    names = [key_of(argument) for argument in arguments if "=" in argument and not argument.startswith("-")]
    strange = [name for name in names if name.rpartition(".")[0] in inner and name not in known and "/" not in name]
    return [f"{name} is not a setting; {nearest(name, schema)}" for name in strange]


def nearest(name: str, schema: type) -> str:
    """A sentence that names the known setting that is spelled most like `name`, whose groups may have been left out."""
    found = {each for each in _known(schema, "") if "." in each or not _is_unused(schema, each)}
    known = sorted(found, key=lambda each: (not each.startswith("trainer."), each))  # of equals, the trainer's

    def likeness(each: str) -> tuple[float, int]:
        spellings = {each, each.rpartition(".")[2] if "." not in name else each}
        return max(difflib.SequenceMatcher(None, name, one).ratio() for one in spellings), -each.count(".")

    return f"the nearest is {max(known, key=likeness)}"


def key_of(override: str) -> str:
    """The setting that an override such as "+trainer.steps=10" names."""
    return override.lstrip("+~").partition("=")[0].partition("@")[0]


def _is_unused(schema: type, name: str) -> bool:
    return any(field.name == name and field.metadata == UNUSED for field in dataclasses.fields(schema))


def _unknown(node: DictConfig, prefix: str) -> Iterator[str]:
    """The names of the settings in `node` that its schema does not have; a mapping without schema has any."""
    schema = OmegaConf.get_type(node)
    has_schema = dataclasses.is_dataclass(schema)
    known = {field.name for field in dataclasses.fields(schema)} if has_schema else set()
    for key in node:
        name = f"{prefix}{key}"
        if has_schema and key not in known:
            yield name
        child = node._get_node(key)  # the value itself may be missing
        if isinstance(child, DictConfig) and not child._is_none() and not child._is_missing():
            yield from _unknown(child, f"{name}.")


def _known(schema: type, prefix: str) -> Iterator[str]:
    """The dotted names of all settings; a choice has those of all entries of its table."""
    hints = get_type_hints(schema)
    for field in dataclasses.fields(schema):
        yield prefix + field.name
        inner = [one for one in (hints[field.name], *get_args(hints[field.name])) if dataclasses.is_dataclass(one)]
        table: Mapping[str, Any] = GROUPS.get(field.name, {}) if not prefix else {}
        for one in [*inner, *(entry.settings for entry in table.values())]:
            yield from _known(one, f"{prefix}{field.name}.")  # pyright: ignore[reportArgumentType]
