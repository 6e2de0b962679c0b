"""Files that ship with the package (settings, demonstrations, a checkpoint), in a checkout or an installed wheel."""

from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
_IN_WHEEL = _PACKAGE / "shipped"
SHIPPED = _IN_WHEEL if _IN_WHEEL.is_dir() else _PACKAGE.parent
"""The folder that holds `configs` and `data`."""

CONFIGS = SHIPPED / "configs"


def places(name: str | Path) -> list[Path]:
    """Where `name` is looked for, in order: the working directory and, if it begins with `data/`, the shipped files."""
    path = Path(name).expanduser()
    is_shipped = path.parts[:1] == ("data",) and ".." not in path.parts
    return list(dict.fromkeys([path.absolute(), *([SHIPPED / path] if is_shipped else [])]))


def find_shipped(name: str | Path) -> Path:
    """`name` if it exists, else the shipped file of that name, such as data/checkpoints/pusht_small.

    A name that is found nowhere is returned unchanged.
    """
    path = Path(name).expanduser()
    return path if path.exists() else next((place for place in places(name) if place.exists()), path)


def find_checkpoint(name: str | Path) -> Path:
    """Like `find_shipped`, for the folder of a checkpoint.

    Raises:
        FileNotFoundError: there is none; the message says where it looked.
    """
    found = find_shipped(name)
    if not found.exists():
        looked = ", ".join(map(str, places(name)))
        raise FileNotFoundError(
            f"checkpoint {str(name)!r} not found; looked at {looked}. Give the folder that holds config.json, such as "
            "RUN/checkpoints/last"
        )
    return found
