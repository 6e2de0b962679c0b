"""Settings that omegaconf pickled, as plain values: read from the state of inert stubs, without omegaconf."""

from typing import Any

from diffpolicy.interop.inert import Stub
from diffpolicy.system.plain import shown

MAX_VALUES = 100_000
MAX_DEPTH = 64
CONTAINERS = ("omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig")


def plain_config(value: Any, where: str) -> Any:
    """Dicts, lists, texts, numbers, bools and None; anything else within becomes a text that shows it.

    Raises:
        ValueError: it has too many values or levels.
    """
    return _Walk(where).plain(value, MAX_DEPTH)


class _Walk:
    """Counts the values, so that what contains itself or repeats its parts ends."""

    def __init__(self, where: str) -> None:
        self.where, self.left = where, MAX_VALUES

    def plain(self, value: Any, depth: int) -> Any:
        self.left -= 1
        if self.left < 0 or depth < 0:
            raise ValueError(f"{self.where}: more than {MAX_VALUES} settings or {MAX_DEPTH} levels of them")
        if isinstance(value, Stub) and isinstance(value.state, dict):
            content = "_content" if value.is_a(*CONTAINERS) else "_val"
            if content in value.state:
                return self.plain(value.state[content], depth)
        if isinstance(value, dict):
            return {str(key): self.plain(one, depth - 1) for key, one in value.items()}
        if isinstance(value, list | tuple):
            return [self.plain(one, depth - 1) for one in value]
        return value if isinstance(value, str | bool | int | float | None) else shown(value)
