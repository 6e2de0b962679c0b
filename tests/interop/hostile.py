"""Pickles and torch files that attack their reader, by class of attack, each one crafted, and mutations of them.

Run as a program it reads them under an audit hook, `count` mutations of each class, and prints what happened as JSON:
python tests/interop/hostile.py count=300 seed=0
"""

import io
import json
import random
import resource
import struct
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from diffpolicy.interop.inert import TensorView
from diffpolicy.interop.pickles import read_pickle
from diffpolicy.interop.torch_file import TorchFile

HARMFUL = ["os.system", "posix.system", "nt.system", "subprocess.Popen", "builtins.eval", "builtins.exec"]
HARMFUL += ["__builtin__.eval", "builtins.__import__", "builtins.open", "importlib.import_module", "socket.socket"]
HARMFUL += ["sys.exit", "shutil.rmtree", "runpy.run_path", "ctypes.CDLL", "builtins.compile", "os.path.join"]
STUBS = ["builtins.getattr", "builtins.map", "pathlib.Path", "torch.load", "dill._dill._create_code", "no.such_name"]
STUBS += ["dill._dill._import_module", "numpy.load", "torch.hub.load", "operator.attrgetter", "functools.partial"]
STUBS += [
    "collections.Counter",
    "_codecs.encode",
    "torch.nn.modules.linear.Linear",
    "builtins.list",
    "builtins.bytearray",
]
KNOWN = ["collections.OrderedDict", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter", "torch.Size"]


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def named(name: str) -> bytes:
    module, _, attribute = name.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def stack_named(name: str) -> bytes:
    module, _, attribute = name.rpartition(".")
    return text(module) + text(attribute) + b"\x93"


def whole(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


def calls(name: str) -> dict[str, bytes]:
    """All ways in which a pickle can call a global."""
    module, _, attribute = name.rpartition(".")
    argument = text("touch /tmp/diffpolicy_was_here")
    return {
        f"REDUCE {name}": whole(named(name) + argument + b"\x85R"),
        f"STACK_GLOBAL {name}": whole(stack_named(name) + argument + b"\x85R"),
        f"NEWOBJ {name}": whole(named(name) + argument + b"\x85\x81"),
        f"NEWOBJ_EX {name}": whole(named(name) + argument + b"\x85}\x92"),
        f"OBJ {name}": whole(b"(" + named(name) + argument + b"o"),
        f"INST {name}": whole(b"(" + argument + f"i{module}\n{attribute}\n".encode()),
        f"BUILD {name}": whole(named(name) + b")R}" + text("__setstate__") + named(name) + b"sb" + argument + b"b"),
    }


def storage(kind: str = "torch.FloatStorage", key: str = "0", numel: int = 6) -> bytes:
    number = b"\x8a\x08" + struct.pack("<q", numel)
    return b"(" + text("storage") + named(kind) + text(key) + text("cpu") + number + b"tQ"


def numbers(values: list[int]) -> bytes:
    return b"(" + b"".join(b"\x8a\x08" + struct.pack("<q", value) for value in values) + b"t"


def tensor(offset: int = 0, shape: tuple[int, ...] = (2, 3), stride: tuple[int, ...] = (3, 1), **given: Any) -> bytes:
    place = b"\x8a\x08" + struct.pack("<q", offset)
    arguments = storage(**given) + place + numbers([*shape]) + numbers([*stride])
    return named("torch._utils._rebuild_tensor_v2") + b"(" + arguments + b"\x89" + named(KNOWN[0]) + b")RtR"


@cache
def crafted() -> dict[str, bytes]:
    """Every attack by its name."""
    found: dict[str, bytes] = {}
    for name in HARMFUL + STUBS + KNOWN:
        found |= calls(name)
    found |= {
        "EXT1": whole(b"\x82\x01"),
        "EXT2": whole(b"\x83\x01\x01"),
        "EXT4": whole(b"\x84\x01\x01\x01\x01"),
        "PERSID": whole(b"Pos.system\n"),
        "BINPERSID of a text": whole(text("anything") + b"Q"),
        "BINPERSID of a module": whole(b"(" + text("module") + named("os.system") + text("source") * 3 + b"tQ"),
        "BINPERSID of a storage of os": whole(storage(kind="os.system")),
        "BINPERSID with a path": whole(tensor(key="../../../etc/passwd")),
        "NEXT_BUFFER": whole(b"\x97"),
        "READONLY_BUFFER": whole(b"N\x98"),
        "protocol 0": b"cos\nsystem\n(S'true'\ntR.",
        "protocol 255": b"\x80\xff.",
        "memo bomb of tuples": whole(b")" + b"2\x86" * 100 + b"q\x00"),
        "memo bomb as a key": whole(b"}" + b")" + b"2\x86" * 100 + b"Ns"),
        "memo bomb of lists": whole(
            b"]q\x00" + b"".join(b"](h%ch%ceq%c" % (i, i, i + 1) for i in range(200)) + b"0" * 200
        ),
        "memo with large indices": whole(
            b"".join(b"Nr" + struct.pack("<I", 2**31 + i) + b"0" for i in range(999)) + b"N"
        ),
        "a list within itself": whole(b"]q\x00h\x00a"),
        "deep lists": whole(b"]" * 100_000 + b"a" * 99_999),
        "deep tuples": whole(b")" + b"\x85" * 200_000),
        "deep stubs": whole(named("a.b") + b")R" * 100_000),
        "deep marks": whole(b"(" * 400_000),
        "deep lists, to mutate": whole(b"]" * 10_000 + b"a" * 9_999),
        "deep tuples, to mutate": whole(b")" + b"\x85" * 10_000),
        "deep stubs, to mutate": whole(named("a.b") + b")R" * 10_000),
        "keys of one hash": whole(b"}(" + b"".join(collisions(20_000)) + b"u"),
        "large integer": whole(b"\x8b" + struct.pack("<i", 2**24) + b"\xff" * 2**10),
        "large text": whole(b"\x8d" + struct.pack("<Q", 2**62) + b"x"),
        "negative text": whole(b"\x8b" + struct.pack("<i", -5)),
        "large frame": whole(b"\x95" + struct.pack("<Q", 2**63) + b"N"),
        "endless": b"N" * 10**6,
        "stride too long": whole(tensor(stride=(4, 1))),
        "negative stride": whole(tensor(stride=(-3, 1))),
        "stride of zero": whole(tensor(shape=(10**12,), stride=(0,))),
        "size too large": whole(tensor(shape=(3, 3))),
        "negative size": whole(tensor(shape=(-2, -3))),
        "sizes that overflow": whole(tensor(shape=(2**32, 2**32), stride=(0, 0))),
        "size and stride differ": whole(tensor(shape=(2, 3, 1))),
        "offset too far": whole(tensor(offset=1)),
        "negative offset": whole(tensor(offset=-1)),
        "storage that lies": whole(tensor(numel=2**40, shape=(2**40,), stride=(1,))),
        "storage of another type": whole(tensor(kind="torch.DoubleStorage")),
        "storage missing": whole(tensor(key="1")),
        "tensor without storage": whole(named(KNOWN[1]) + b"NK\x00)\x87R"),
        "tensor as key": whole(b"}" + tensor() + b"Ns"),
        "honest": whole(b"}(" + text("weight") + tensor() + text("step") + b"K\x05u"),
    }
    return found


def collisions(count: int) -> Iterator[bytes]:
    """Integers of the same hash, each with a value."""
    for index in range(count):
        data = (index * (2**61 - 1)).to_bytes(12, "little")
        yield b"\x8a" + bytes([len(data)]) + data + b"N"


def packed(data: bytes, stored: int = zipfile.ZIP_STORED, floats: int = 6, second: str = "") -> bytes:
    """A torch file with this pickle, and the same as a `second` member."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", stored) as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/data/0", bytes(4 * floats))
        archive.writestr("archive/version", "3\n")
        if second:
            archive.writestr(second, data)
    return buffer.getvalue()


@cache
def files() -> dict[str, bytes]:
    """Torch files that attack by their zip."""
    honest = packed(crafted()["honest"])
    end = honest.rindex(b"PK\x05\x06")
    large = honest[: end + 12] + struct.pack("<I", 2**30) + honest[end + 16 :]
    return {
        "honest file": honest,
        "zip bomb": packed(whole(b"N" * 2**22), zipfile.ZIP_DEFLATED),
        "zip bomb of a storage": packed(crafted()["honest"], zipfile.ZIP_DEFLATED, floats=2**20),
        "large directory": large,
        "comment": honest[:-2] + b"\x05\x00abcde",
        "truncated": honest[: len(honest) // 2],
        "empty": b"",
        "only an end": b"PK\x05\x06" + bytes(18),
        "two pickles": packed(crafted()["honest"], second="other/data.pkl"),
        "bare pickle": crafted()["honest"],
    }


def mutated(data: bytes, random_numbers: random.Random) -> bytes:
    """The bytes with a few of them changed, removed, repeated, or put elsewhere."""
    changed = bytearray(data)
    for _ in range(random_numbers.randint(1, 8)):
        at = random_numbers.randrange(len(changed) + 1)
        length = random_numbers.randint(1, 16)
        kind = random_numbers.randrange(5)
        if kind == 0 and at < len(changed):
            changed[at] = random_numbers.randrange(256)
        elif kind == 1:
            del changed[at : at + length]
        elif kind == 2:
            changed[at:at] = changed[at : at + length]
        elif kind == 3:
            changed[at:at] = random_numbers.choice(OPCODES)
        elif kind == 4:
            other = random_numbers.randrange(len(changed) + 1)
            changed[at:at] = changed[other : other + length]
    return bytes(changed)


OPCODES = [
    bytes([code]) for code in b"(.012FIJKLMNPQRSTUVX}abcdeghijlopqrstu])\x80\x81\x82\x83\x84\x85\x86\x87\x88\x89\x8a"
]
OPCODES += [bytes([code]) for code in range(0x8B, 0x99)]


class Watch:
    """Records the audit events while it is on, but for opening `allowed`."""

    def __init__(self) -> None:
        self.is_on, self.allowed, self.seen = False, "", []
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        harmless = event == "builtins.id" or (event == "open" and str(arguments[0]) == self.allowed)
        if self.is_on and not harmless:
            self.seen.append(f"{event} {arguments!r:.200}")


def read(data: bytes, is_file: bool, path: Path, watch: Watch) -> bool:
    """Read a pickle, or a file with all of its tensors; returns whether it was not refused."""
    if is_file:
        path.write_bytes(data)
    watch.is_on, watch.allowed = True, str(path)
    try:
        if not is_file:
            read_pickle(data, "pickle")
            return True
        with TorchFile(path) as file:
            content = file.content.values() if isinstance(file.content, dict) else [file.content]
            for view in content:
                if isinstance(view, TensorView):
                    file.tensor(view)
        return True
    except ValueError:
        return False
    finally:
        watch.is_on = False


CLASSES = {  # class of attacks -> how their names begin
    **{opcode: (f"{opcode} ",) for opcode in ("REDUCE", "STACK_GLOBAL", "NEWOBJ", "NEWOBJ_EX", "OBJ", "INST", "BUILD")},
    "EXT": ("EXT",),
    "persistent ids": ("PERSID", "BINPERSID"),
    "buffers and protocols": ("NEXT_BUFFER", "READONLY_BUFFER", "protocol "),
    "memo bombs": ("memo ",),
    "recursion": ("a list ", "deep "),
    "hashes": ("keys ", "tensor as "),
    "lengths": ("large ", "negative text", "endless"),
    "tensors": ("stride ", "negative ", "size", "offset ", "storage ", "tensor without", "honest"),
}


def of_class() -> dict[str, list[tuple[bytes, bool]]]:
    """The attacks of each class, alone and packed, with whether each is a whole file."""
    found = {name: [data for key, data in crafted().items() if key.startswith(keys)] for name, keys in CLASSES.items()}
    assert {data for each in found.values() for data in each} == set(crafted().values())
    alone = {name: [(data, is_file) for data in each for is_file in (False, True)] for name, each in found.items()}
    packs = {name: [(packed(data) if is_file else data, is_file) for data, is_file in alone[name]] for name in alone}
    return {**packs, "zips": [(data, True) for data in files().values()]}


def cases(attacks: list[tuple[bytes, bool]], count: int, numbers: random.Random) -> Iterator[tuple[bytes, bool]]:
    """The attacks themselves, then `count` mutations; a third of those in files change the pickle inside."""
    yield from attacks
    small = [(data, is_file) for data, is_file in attacks if len(data) < 2**16]
    for _ in range(count):
        data, is_file = numbers.choice(small)
        inside = is_file and numbers.randrange(3) == 0 and data.startswith(b"PK")
        yield (packed(mutated(_pickle_of(data), numbers)) if inside else mutated(data, numbers)), is_file


def _pickle_of(file: bytes) -> bytes:
    try:
        with zipfile.ZipFile(io.BytesIO(file)) as archive:
            return archive.read("archive/data.pkl")
    except (zipfile.BadZipFile, KeyError):
        return file


def main(count: int, seed: int) -> dict[str, Any]:
    """What the reader did: of each class the cases, those that were read, the slowest, the most memory so far."""
    told: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        path, watch = Path(folder) / "hostile.ckpt", Watch()
        read(packed(crafted()["honest"]), True, path, watch)  # whatever Python loads at its first zip
        watch.seen.clear()
        for name, attacks in of_class().items():
            done, kept, slowest = 0, 0, 0.0
            for data, is_file in cases(attacks, count, random.Random(f"{seed} {name}")):
                start = time.process_time()
                kept += read(data, is_file, path, watch)
                slowest = max(slowest, time.process_time() - start)
                done += 1
            told[name] = {"cases": done, "read": kept, "slowest_s": round(slowest, 4), "peak_mb": round(_peak_mb())}
    return {"classes": told, "events": watch.seen[:20]}


def _peak_mb() -> float:
    """Of this process alone, where /proc says it: `ru_maxrss` counts the process that started this one as well."""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    given = dict(argument.split("=") for argument in sys.argv[1:])
    print(json.dumps(main(int(given["count"]), int(given["seed"]))))
