"""Plain values, as JSON holds them: strict parsing, and showing one in an error message."""

import json
import math
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MAX_BYTES = 64 * 2**20
MAX_DEPTH = 100
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = 8
_SHORT.maxlevel = 3


def parsed(data: bytes, where: str) -> Any:
    """Parse JSON in UTF-8; stricter than `json.loads`, which keeps the last of two equal keys and accepts NaN.

    Raises:
        ValueError: it is not JSON, too large, nested too deeply, or holds NaN, infinity or a key twice. `where` begins
            the message.
    """
    if len(data) > MAX_BYTES:
        raise ValueError(f"{where} has {len(data)} bytes, expected at most {MAX_BYTES}")
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_finite, parse_float=_finite)
        _check_depth(value, MAX_DEPTH)
    except RecursionError:
        raise ValueError(f"{where} is not valid JSON (nested too deeply); restore it from a copy") from None
    except ValueError as error:  # also of decoding, and of a number with thousands of digits
        raise ValueError(f"{where} is not valid JSON ({shown_text(str(error))}); restore it from a copy") from error
    return value


def read_bounded(path: Path) -> bytes:
    """The content of a file, or so much of it that `parsed` refuses it as too large."""
    with path.open("rb") as file:
        return file.read(MAX_BYTES + 1)


def shown(value: Any) -> str:
    """A short representation of a value on one line."""
    return shown_text(_SHORT.repr(value))


def shown_text(text: str) -> str:
    """A text on one line, shortened in the middle."""
    line = " ".join(text.split())
    return line if len(line) <= 200 else f"{line[:120]} ... {line[-60:]}"


def difference(found: Any, expected: Any, path: str = "") -> str | None:
    """Describe the first difference between two plain values, with its path; None if they are equal.

    Lists and tuples count as the same, whole numbers and floats too.
    """
    if isinstance(found, Mapping) and isinstance(expected, Mapping):
        for key in [*expected, *(key for key in found if key not in expected)]:
            here = f"{path}.{key}".strip(".")
            if key not in found or key not in expected:
                return f"{here} is {'missing' if key in expected else 'unknown'}"
            if told := difference(found[key], expected[key], here):
                return told
        return None
    if isinstance(found, list | tuple) and isinstance(expected, list | tuple) and len(found) == len(expected):
        pairs = enumerate(zip(found, expected, strict=True))
        return next((told for i, (a, b) in pairs if (told := difference(a, b, f"{path}[{i}]"))), None)
    same = isinstance(found, bool) == isinstance(expected, bool) and found == expected
    return None if same else f"{path} is {shown(found)}, expected {shown(expected)}"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in found if keys.count(key) > 1)
        raise ValueError(f"key {shown(twice)} appears twice in one object")
    return found


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is not a finite number")
    return value


def _check_depth(value: Any, left: int) -> None:
    if not left:
        raise RecursionError
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_depth(inner, left - 1)
