"""Settings in advice, spelled so that they work when they are pasted into a shell."""

import re
import shlex
from pathlib import Path

PLAIN = re.compile(r"[A-Za-z_/][A-Za-z0-9_./-]*")


def override(name: str, value: str | Path) -> str:
    """NAME=VALUE for a command, quoted for hydra and for the shell where that is necessary."""
    text = str(value)
    if PLAIN.fullmatch(text) and text.lower() not in ("true", "false", "null", "nan", "inf"):
        return f"{name}={text}"
    text = re.sub(r"(\\*)(\"|$|\$\{)", lambda found: 2 * found[1] + _escaped(found[2]), text)
    return shlex.quote(f'{name}="{text}"')


def _escaped(special: str) -> str:
    return f"\\{special}" if special else ""
