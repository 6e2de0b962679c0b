"""The names that a pickle may call: what a few of them are read as, and which are refused."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from diffpolicy.interop.inert import Name, RefusedError, Storage, Stub, TensorView
from diffpolicy.interop.views import DTYPES, checked_view
from diffpolicy.system.plain import shown

# What no checkpoint needs and every attack does. As stubs these would be as harmless as all other names; a refusal says
# that the file is not what it seems.
HARMFUL = re.compile(
    r"(asyncio|code|codeop|commands|ctypes|importlib|multiprocessing|nt|os|posix|pty|runpy|shutil|signal|socket"
    r"|subprocess|sys|threading|timeit|urllib|webbrowser)\..*"
    r"|(builtins|__builtin__)\.(__import__|breakpoint|compile|delattr|eval|exec|execfile|globals|input|open|vars)(\..*)?",
    re.DOTALL,
)


def named(module: Any, name: Any) -> Name:
    """The name of a global.

    Raises:
        RefusedError: it is no text, or it has effects that no checkpoint needs.
    """
    if not isinstance(module, str) or not isinstance(name, str):
        raise RefusedError("a global whose name is no text")
    if HARMFUL.fullmatch(f"{module}.{name}"):
        raise RefusedError(f"it asks for {shown(f'{module}.{name}')}, which no checkpoint needs; never load it")
    return Name(module, name)


def called(made_by: Any, arguments: Any) -> Any:
    """What stands for a call: a tensor, a dict, a size; for all other names a `Stub`.

    Raises:
        RefusedError: what is called is no global, or the arguments are not those of a tensor.
    """
    if not isinstance(made_by, Name | Stub):
        raise RefusedError(f"it calls a {type(made_by).__name__}")
    known = KNOWN.get(str(made_by)) if isinstance(made_by, Name) and isinstance(arguments, tuple) else None
    return known(arguments) if known else Stub(made_by, arguments)


def stored(identity: Any) -> Storage:
    """The storage of a persistent id ("storage", type, key, location, number of elements).

    Raises:
        RefusedError: it is another persistent id.
    """
    if not isinstance(identity, tuple) or len(identity) != 5 or identity[0] != "storage":
        raise RefusedError("a persistent id that is not a torch storage")
    _, kind, key, _, numel = identity
    if not isinstance(kind, Name) or kind.module != "torch" or kind.name not in DTYPES:
        raise RefusedError(f"a storage of type {shown(kind)}")
    if not isinstance(key, str) or type(numel) is not int or not 0 <= numel < 2**48:
        raise RefusedError("a storage without a name or a size")
    return Storage(DTYPES[kind.name], key, numel)


def _ordered(arguments: tuple[Any, ...]) -> Any:
    return Stub(Name("collections", "OrderedDict"), arguments) if arguments else {}


def _tensor(arguments: tuple[Any, ...]) -> TensorView:
    if len(arguments) < 4:
        raise RefusedError("a tensor without storage, offset, size and stride")
    return checked_view(*arguments[:4])


def _parameter(arguments: tuple[Any, ...]) -> TensorView:
    if not arguments or not isinstance(arguments[0], TensorView):
        raise RefusedError("a parameter that is no tensor")
    return arguments[0]


def _size(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(arguments) != 1 or not isinstance(arguments[0], tuple):
        raise RefusedError("a torch.Size that is no tuple")
    return arguments[0]


KNOWN: Mapping[str, Callable[[tuple[Any, ...]], Any]] = {
    "collections.OrderedDict": _ordered,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch.Size": _size,
}
