"""A table of entries in one test case, for entries that cost milliseconds and say one thing together."""

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any


def over(
    names: str, entries: Iterable[Any] | Mapping[str, Any]
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """`pytest.mark.parametrize` in one case: the test runs for every entry, a failure is noted with its entry.

    Args:
        names: of the arguments, separated by commas.
        entries: the values of these arguments, tuples where there are several; of a mapping its values, named by key.
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
        run.__signature__ = inspect.Signature(kept)  # type: ignore[attr-defined] # what pytest shall fill in
        return run

    return decorate
