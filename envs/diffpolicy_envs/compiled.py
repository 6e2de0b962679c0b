"""The numba compiler, with a cache on disk if possible."""

from collections.abc import Callable
from typing import Any, TypeVar

from numba import njit

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """`numba.njit(cache=True)`, or without a cache if neither the package nor the home folder is writable."""
    dispatcher: Any
    try:
        dispatcher = njit(cache=True)(function)
    except RuntimeError:  # "no locator available": numba found no folder for its cache
        dispatcher = njit(function)
    return dispatcher
