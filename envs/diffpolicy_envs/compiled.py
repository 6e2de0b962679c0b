"""numba's compiler, with a cache on disk where there is room for one."""

from collections.abc import Callable
from typing import Any, TypeVar

from numba import njit

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """`numba.njit(cache=True)`; without a cache where neither the package nor the home folder can be written."""
    dispatcher: Any
    try:
        dispatcher = njit(cache=True)(function)
    except RuntimeError:  # "no locator available": numba found no folder for its cache
        dispatcher = njit(function)
    return dispatcher
