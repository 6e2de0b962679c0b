"""What a pickle is read as, besides plain data: names, and inert stubs in place of what the names would have made."""

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class Name:
    """A global that a pickle names, as torch.float32; it is never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False, repr=False)
class Stub:
    """What stands for an object that unpickling would have made; nothing is called.

    Attributes:
        made_by: the name that would have been called, or whatever else stood in its place.
        arguments: what it would have been called with.
        state: what `__setstate__` or `__dict__` would have been given; None without.
        items: what would have been appended or added.
        entries: what would have been set by key.
    """

    made_by: Any
    arguments: Any = ()
    state: Any = None
    items: list[Any] = field(default_factory=list)
    entries: dict[Hashable, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Stub({self.made_by if isinstance(self.made_by, Name) else type(self.made_by).__name__})"

    def is_a(self, *names: str) -> bool:
        """Whether it would have been made by one of these globals."""
        return isinstance(self.made_by, Name) and str(self.made_by) in names


@dataclass(frozen=True)
class Storage:
    """A torch storage: a member of the zip file with numbers of one type."""

    dtype: torch.dtype
    key: str
    numel: int


@dataclass(frozen=True)
class TensorView:
    """A tensor that lies in a storage; its numbers are not read yet.

    Attributes:
        storage: where its numbers are.
        offset: number of the first element.
        shape, stride: of each dimension, in elements.
    """

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class RefusedError(ValueError):
    """A pickle asks for something that this reader does not do."""


def is_key(value: Any) -> bool:
    """Whether a value may be a key.

    Nobody may choose keys that all fall on one place of a hash table, as multiples of 2^61 - 1 would, or hash a tuple
    of tuples of tuples: a thousand bytes could then take hours. Tuples of texts are the keys of omegaconf's caches.
    """
    if isinstance(value, tuple):
        return len(value) <= 16 and all(isinstance(one, str) for one in value)
    if isinstance(value, int):
        return abs(value) < 2**60
    return isinstance(value, str | bytes | Name | Stub | None)
