"""A decorator that runs a test over a table in one test case, for entries that each take milliseconds."""

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any


def over(
    names: str, entries: Iterable[Any] | Mapping[str, Any]
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Like `pytest.mark.parametrize`, but in one test case; a failure carries a note that names its entry.

    Args:
        names: the argument names, separated by commas.
        entries: the values of the arguments, as tuples if there are several. The keys of a mapping name its values.
    """
    arguments = [name.strip() for name in names.split(",")]
    named = list(entries.items()) if isinstance(entries, Mapping) else [(str(entry), entry) for entry in entries]
    assert named, f"no entries for {names}"

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(test)
        def run(*args: Any, **others: Any) -> None:
            for name, entry in named:
                values = entry if len(arguments) > 1 else (entry,)
                try:
                    test(*args, **others, **dict(zip(arguments, values, strict=True)))
                except Exception as error:
                    error.add_note(f"{names}: {name}")
                    raise

        kept = [p for name, p in inspect.signature(test).parameters.items() if name not in arguments]
        run.__signature__ = inspect.Signature(kept)  # type: ignore[attr-defined] # the arguments for pytest to fill in
        return run

    return decorate
