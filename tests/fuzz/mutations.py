"""Random changes to what lies on disk: to the values of a JSON tree, to its text, to the bytes of a file."""

import copy
import json
import random
from typing import Any

WEIRD: list[Any] = [
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        -8,
        2,
        3,
        99,
        255,
        257,
        10**5,
        10**9,
        2**31,
        2**63,
        10**30,
        0.0,
        -0.0,
        0.5,
        100.5,
        -1e-9,
    ),
    *(1e-320, 1e9, 1e38, 1e308, "", "x", "ten", "1", "null", "../..", "a\nb", "\u0000", "ddim", "limits", "é" * 500),
    *([], [0], [-1], [10**9], [[]], ["a"], [None], {}, {"name": "x"}, {"name": None}, {"a": {"b": []}}, [1.5, 2]),
]
RAW = ["NaN", "Infinity", "-Infinity", "1e999", "9" * 5000, "[" * 5000 + "]" * 5000, "[" * 300 + "]" * 300, "truee", ""]


def paths(tree: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values below the root."""
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [one for key, value in inner for one in ((*here, key), *paths(value, (*here, key)))]


def at(tree: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def changed_tree(tree: Any, random_: random.Random, among: list[tuple[Any, ...]]) -> tuple[Any, str]:
    """A copy with one change at one of the paths `among`, and what the change was."""
    tree, path = copy.deepcopy(tree), random_.choice(among)
    parent, key = at(tree, path[:-1]), path[-1]
    kind = random_.choices(("replace", "scale", "delete", "rename", "add", "move"), (8, 3, 2, 1, 1, 1))[0]
    value = parent[key]
    if kind == "scale" and isinstance(value, int | float) and not isinstance(value, bool):
        parent[key] = value * random_.choice((-1, 0, 0.5, 1.5, 2, 1000, 10**9))
    elif kind == "delete":
        del parent[key]
    elif kind == "rename" and isinstance(parent, dict):
        parent[random_.choice((f"{key}x", key.upper(), "", "name", "__class__"))] = parent.pop(key)
    elif kind == "add":
        place = value if isinstance(value, dict | list) else parent
        place.append(random_.choice(WEIRD)) if isinstance(place, list) else place.update(surplus=random_.choice(WEIRD))
    elif kind == "move":
        parent[key] = copy.deepcopy(at(tree, random_.choice(paths(tree))))
    else:
        kind, parent[key] = "replace", copy.deepcopy(random_.choice(WEIRD))
    return tree, f"{kind} {'.'.join(map(str, path))}"


def changed_text(text: str, random_: random.Random) -> str:
    """JSON text with a value replaced by what JSON does not allow, a key twice, or a character changed."""
    kind, colons = random_.randrange(4), [i for i, letter in enumerate(text) if letter == ":"]
    if kind == 0 and colons:
        place = random_.choice(colons) + 1
        end = min((i for i in (text.find(",", place), text.find("}", place)) if i > 0), default=place)
        return text[:place] + random_.choice(RAW) + text[end:]
    if kind == 1 and (start := text.find("{")) >= 0 and (names := json.loads(text)):
        name = random_.choice(list(names)) if isinstance(names, dict) else "x"
        return f"{text[: start + 1]}{json.dumps(name)}: {json.dumps(random_.choice(WEIRD))}, {text[start + 1 :]}"
    place = random_.randrange(len(text))
    if kind == 2:
        return text[:place]
    return text[:place] + random_.choice('{}[]",:0-e.\\\x00x') + text[place + 1 :]


def changed_bytes(data: bytes, random_: random.Random) -> bytes:
    """Bytes with a bit flipped, a run overwritten, removed or repeated, or the end cut off."""
    kind, place = random_.randrange(6), random_.randrange(max(1, len(data)))
    run = random_.randrange(1, 1 + min(64, max(1, len(data))))
    if kind <= 1 and data:
        return data[:place] + bytes([data[place] ^ (1 << random_.randrange(8))]) + data[place + 1 :]
    if kind == 2:
        return data[:place] + random_.choice((b"\xff", b"\x00", b"\x7f")) * run + data[place + run :]
    if kind == 3:
        return data[:place] + data[place + run :]
    if kind == 4:
        return data[:place]
    return data[:place] + data[place : place + run] + data[place:]
