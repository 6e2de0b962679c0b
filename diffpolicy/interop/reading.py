"""What the importers share: looking up settings of a strange file, and what an importer has found."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from diffpolicy.policy.settings import PolicyConfig
from diffpolicy.system import tensor_file
from diffpolicy.system.plain import parsed, read_bounded, shown
from diffpolicy.system.schema import read


@dataclass(frozen=True)
class Imported:
    """A policy of another library, in our terms.

    Attributes:
        config: the settings.
        tensors: name in our `acting_state` -> value.
        sampler: settings of the sampler that the other library would use.
        source: where it comes from, for the metadata of the checkpoint.
        lost: what it had that ours does not keep, a sentence each.
    """

    config: PolicyConfig
    tensors: Mapping[str, Tensor]
    sampler: Any
    source: Mapping[str, Any]
    lost: list[str] = field(default_factory=list)


class Settings:
    """Settings of another library, read one by one with their types.

    Args:
        content: the settings.
        where: begins the messages of errors.
    """

    def __init__(self, content: Any, where: str) -> None:
        if not isinstance(content, Mapping):
            raise ValueError(f"{where} is {shown(content)}, expected settings")
        self.content, self.where = content, where

    def get(self, name: str, hint: Any, *default: Any) -> Any:
        """A setting of type `hint`; `default` if it is not there. Raises ValueError if it is of another type."""
        if name not in self.content and default:
            return default[0]
        if name not in self.content:
            raise ValueError(f"{self.where}: {name} is missing")
        return read(hint, self.content[name], f"{self.where}: {name}")

    def filled(self, defaults: Mapping[str, Any]) -> "Settings":
        """With defaults for the settings that are not there."""
        return Settings({**defaults, **self.content}, self.where)

    def within(self, name: str) -> "Settings":
        """A group of settings."""
        return Settings(self.get(name, Any), f"{self.where}: {name}")

    def require(self, name: str, expected: Any, why: str, *default: Any) -> None:
        """Raise ValueError with the reason unless a setting has the one value that ours can represent."""
        found = self.content.get(name, default[0] if default else expected)
        if found != expected:
            raise ValueError(f"{self.where}: {name} is {shown(found)}, which is not imported: {why}")


def read_json(path: Path) -> Settings:
    """The settings in a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON, or no mapping.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    return Settings(parsed(read_bounded(path), str(path)), str(path))


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, whose header is checked first.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    return tensor_file.read(path, str(path))
