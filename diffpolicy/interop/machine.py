"""The state of a reader of pickles: the position in the file, the stack, the marks and the memo."""

import struct
from typing import Any

from diffpolicy.interop.inert import RefusedError


class Machine:
    """The stack, the memo and the position in the file."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def take(self, count: int) -> bytes:
        if count < 0 or count > len(self.data) - self.at:
            raise RefusedError("it ends too early")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, layout: str) -> Any:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def line(self) -> str:
        end = self.data.index(b"\n", self.at)
        text = self.take(end - self.at).decode("utf-8")
        self.at += 1
        return text

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        return self.stack.pop()

    def since_mark(self) -> list[Any]:
        """All values since the last mark, which are taken from the stack."""
        values, self.stack = self.stack, self.marks.pop()
        return values
