"""What comes with the package: settings, demonstrations, a checkpoint; in a checkout or in an installed wheel."""

from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
_IN_WHEEL = _PACKAGE / "shipped"
SHIPPED = _IN_WHEEL if _IN_WHEEL.is_dir() else _PACKAGE.parent
"""The folder that holds `configs` and `data`."""

CONFIGS = SHIPPED / "configs"


def find_shipped(name: str | Path) -> Path:
    """`name` if it is there or absolute, else the file or folder of that name which comes with the package, if any."""
    path = Path(name).expanduser()
    shipped = SHIPPED / path
    return shipped if not path.exists() and shipped.exists() else path
