"""A reader of pickles that runs no code: opcodes become plain data and inert stubs, or the file is refused.

It is a parser of its own, not a restricted `pickle.Unpickler`: there is no way from a name in the file to an object of
this process. The table in names.py has the few whose calls are understood (tensors, OrderedDict, torch.Size);
every other call becomes a `Stub` that remembers name and arguments. Memory and time are bounded by the size of the
file, which is bounded as well: an opcode copies nothing that an earlier one has made.

The opcodes are those of protocols 2 to 5 (PEP 307, 3154, 574), which torch and dill write. Out-of-band buffers, the
extension registry and the text opcodes of protocol 0 are refused.
"""

import struct
from collections.abc import Callable, Mapping
from typing import Any

from diffpolicy.interop.inert import Name, RefusedError, Stub, is_key
from diffpolicy.interop.machine import Machine
from diffpolicy.interop.names import called, named, stored
from diffpolicy.system.plain import shown_text

MAX_BYTES = 16 * 2**20
MAX_OPCODES = 500_000
MAX_INT_BYTES = 256


def read_pickle(data: bytes, where: str) -> Any:
    """Read a pickle as data.

    Args:
        data: the whole pickle.
        where: begins the messages of errors.

    Returns:
        None, bool, int, float, str, bytes, list, tuple, dict, set, frozenset, and `Name`, `Stub`, `Storage` and
        `TensorView` within them. Lists and stubs may contain themselves; bound whatever walks through them.

    Raises:
        ValueError: it is damaged, too large, or asks for what is refused.
    """
    if len(data) > MAX_BYTES:
        raise ValueError(f"{where} has {len(data)} bytes, expected at most {MAX_BYTES}")
    machine = Machine(data)
    try:
        return _run(machine)
    except RefusedError as error:
        raise ValueError(f"{where} is refused: {error} (at byte {machine.at})") from None
    except (IndexError, KeyError, TypeError, ValueError, OverflowError, struct.error) as error:
        told = shown_text(str(error))
        raise ValueError(f"{where} is damaged: {type(error).__name__} {told} (at byte {machine.at})") from None


def _run(machine: Machine) -> Any:
    for _ in range(MAX_OPCODES):
        code = machine.take(1)
        if code == b".":
            if len(machine.stack) != 1 or machine.marks:
                raise RefusedError("it ends with more or less than one value")
            return machine.pop()
        action = _OPCODES.get(code)
        if action is None:
            raise RefusedError(f"opcode 0x{code.hex()} is unknown or not supported")
        action(machine)
    raise RefusedError(f"it has more than {MAX_OPCODES} opcodes")


def _mark(machine: Machine) -> None:
    machine.marks.append(machine.stack)
    machine.stack = []


def _pop(machine: Machine) -> None:
    if machine.stack:
        machine.pop()
    else:
        machine.since_mark()


def _frame(machine: Machine) -> None:
    if machine.number("<Q") > len(machine.data) - machine.at:
        raise RefusedError("a frame is longer than the file")


def _proto(machine: Machine) -> None:
    if not 2 <= (version := machine.number("<B")) <= 5:
        raise RefusedError(f"protocol {version}, expected 2 to 5")


def _long(machine: Machine, count: int) -> None:
    if not 0 <= count <= MAX_INT_BYTES:
        raise RefusedError(f"an integer of {count} bytes, expected at most {MAX_INT_BYTES}")
    machine.push(int.from_bytes(machine.take(count), "little", signed=True))


def _text(machine: Machine, layout: str) -> None:
    machine.push(machine.take(machine.number(layout)).decode("utf-8", "surrogatepass"))


def _bytes(machine: Machine, layout: str) -> None:
    machine.push(machine.take(machine.number(layout)))


def _tuple(machine: Machine, count: int) -> None:
    values = [machine.pop() for _ in range(count)]
    machine.push(tuple(reversed(values)))


def _put(machine: Machine, index: int) -> None:
    machine.memo[index] = machine.stack[-1]


def _append(machine: Machine, values: list[Any]) -> None:
    target = machine.stack[-1]
    if isinstance(target, Stub):
        target = target.items
    if not isinstance(target, list):
        raise RefusedError(f"it appends to a {type(target).__name__}")
    target.extend(values)


def _set_items(machine: Machine, values: list[Any]) -> None:
    target = machine.stack[-1]
    if isinstance(target, Stub):
        target = target.entries
    if not isinstance(target, dict) or len(values) % 2:
        raise RefusedError(f"it sets {len(values)} keys and values of a {type(target).__name__}")
    target.update(zip(_keys(values[::2]), values[1::2], strict=True))


def _set_item(machine: Machine) -> None:
    value, key = machine.pop(), machine.pop()
    _set_items(machine, [key, value])


def _add_items(machine: Machine) -> None:
    values, target = machine.since_mark(), machine.stack[-1]
    if isinstance(target, Stub):
        target.items.extend(values)
    elif isinstance(target, set):
        target.update(_keys(values))
    else:
        raise RefusedError(f"it adds to a {type(target).__name__}")


def _dict(machine: Machine) -> None:
    values = machine.since_mark()
    machine.push({})
    _set_items(machine, values)


def _keys(values: list[Any]) -> list[Any]:
    for value in values:
        if not is_key(value):
            raise RefusedError(f"a {type(value).__name__} as a key")
    return values


def _global(machine: Machine) -> None:
    module, name = machine.line(), machine.line()
    machine.push(named(module, name))


def _stack_global(machine: Machine) -> None:
    name, module = machine.pop(), machine.pop()
    machine.push(named(module, name))


def _reduce(machine: Machine) -> None:
    arguments, made_by = machine.pop(), machine.pop()
    machine.push(called(made_by, arguments))


def _new_object_with_names(machine: Machine) -> None:
    by_name, arguments, made_by = machine.pop(), machine.pop(), machine.pop()
    if not isinstance(made_by, Name | Stub):
        raise RefusedError(f"it calls a {type(made_by).__name__}")
    machine.push(Stub(made_by, (arguments, by_name)))


def _object(machine: Machine) -> None:
    made_by, *arguments = machine.since_mark()
    machine.push(called(made_by, tuple(arguments)))


def _instance(machine: Machine) -> None:
    made_by = named(machine.line(), machine.line())
    machine.push(called(made_by, tuple(machine.since_mark())))


def _build(machine: Machine) -> None:
    state, target = machine.pop(), machine.stack[-1]
    if isinstance(target, Stub):
        target.state = state
    elif not isinstance(target, dict):  # an OrderedDict has attributes, such as _metadata, which are left out
        raise RefusedError(f"it sets the state of a {type(target).__name__}")


_OPCODES: Mapping[bytes, Callable[[Machine], Any]] = {
    b"\x80": _proto,
    b"\x95": _frame,
    b"(": _mark,
    b"0": _pop,
    b"1": Machine.since_mark,
    b"2": lambda m: m.push(m.stack[-1]),
    b"N": lambda m: m.push(None),
    b"\x88": lambda m: m.push(True),
    b"\x89": lambda m: m.push(False),
    b"J": lambda m: m.push(m.number("<i")),
    b"K": lambda m: m.push(m.number("<B")),
    b"M": lambda m: m.push(m.number("<H")),
    b"\x8a": lambda m: _long(m, m.number("<B")),
    b"\x8b": lambda m: _long(m, m.number("<i")),
    b"G": lambda m: m.push(m.number(">d")),
    b"X": lambda m: _text(m, "<I"),
    b"\x8c": lambda m: _text(m, "<B"),
    b"\x8d": lambda m: _text(m, "<Q"),
    b"B": lambda m: _bytes(m, "<I"),
    b"C": lambda m: _bytes(m, "<B"),
    b"\x8e": lambda m: _bytes(m, "<Q"),
    b"\x96": lambda m: _bytes(m, "<Q"),  # a bytearray
    b"]": lambda m: m.push([]),
    b"}": lambda m: m.push({}),
    b")": lambda m: m.push(()),
    b"\x8f": lambda m: m.push(set()),
    b"l": lambda m: m.push(m.since_mark()),
    b"t": lambda m: m.push(tuple(m.since_mark())),
    b"\x85": lambda m: _tuple(m, 1),
    b"\x86": lambda m: _tuple(m, 2),
    b"\x87": lambda m: _tuple(m, 3),
    b"\x91": lambda m: m.push(frozenset(_keys(m.since_mark()))),
    b"d": _dict,
    b"a": lambda m: _append(m, [m.pop()]),
    b"e": lambda m: _append(m, m.since_mark()),
    b"s": _set_item,
    b"u": lambda m: _set_items(m, m.since_mark()),
    b"\x90": _add_items,
    b"q": lambda m: _put(m, m.number("<B")),
    b"r": lambda m: _put(m, m.number("<I")),
    b"\x94": lambda m: _put(m, len(m.memo)),
    b"h": lambda m: m.push(m.memo[m.number("<B")]),
    b"j": lambda m: m.push(m.memo[m.number("<I")]),
    b"c": _global,
    b"\x93": _stack_global,
    b"R": _reduce,
    b"\x81": _reduce,
    b"\x92": _new_object_with_names,
    b"o": _object,
    b"i": _instance,
    b"b": _build,
    b"Q": lambda m: m.push(stored(m.pop())),
}
