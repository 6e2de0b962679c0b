"""Mutants of the core that a test should notice: a seeded choice among all signs, indices, bounds and conditions.

A mutant replaces one expression of one file with a similar, wrong one. Code that tests need not distinguish is left
alone: annotations, strings, error and warning messages, decorators, defaults, and code outside of functions.
"""

import ast
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

# Mutants per room, out of 60.
SHARES = {
    "diffusion": 13,
    "constraints": 12,
    "safety": 8,
    "policy": 6,
    "networks": 6,
    "control": 4,
    "data": 4,
    "training": 3,
    "codecs": 2,
    "evaluation": 2,
}
ORDER: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
}
BOUNDS = {"clamp", "clamp_", "clamp_min", "clamp_max", "clip", "abs", "nan_to_num"}
OPPOSITES = {"min": "max", "minimum": "maximum", "amin": "amax", "argmin": "argmax", "cummin": "cummax"}
OPPOSITES |= {other: one for one, other in OPPOSITES.items()}
MODULES = {"torch", "np", "numpy", "math", "F"}  # their functions take the value as the first argument
SILENT = {"print", "warn", "warning", "info"}  # calls whose arguments are messages
TEXTUAL = (ast.JoinedStr, ast.List, ast.ListComp, ast.Tuple, ast.Dict)  # + concatenates these


@dataclass(frozen=True)
class Mutant:
    """One change of one file.

    Attributes:
        path: path of the file, relative to the tree.
        line: line of the change, counted from 1.
        start, end: byte range in the file that is replaced.
    """

    path: str
    line: int
    kind: str
    start: int
    end: int
    before: str
    after: str

    @property
    def room(self) -> str:
        return Path(self.path).parts[1]

    def apply(self, content: bytes) -> bytes:
        """The file's content with the change."""
        assert content[self.start : self.end].decode() == self.before, f"{self.path} is not what it was made from"
        return content[: self.start] + self.after.encode() + content[self.end :]


def choose(tree: Path, seed: int = 0, count: int = 60) -> list[Mutant]:
    """Choose `count` mutants of TREE/diffpolicy by SHARES; a room cycles through all kinds and uses no line twice."""
    generator = random.Random(seed)
    chosen: list[Mutant] = []
    for room, share in SHARES.items():
        kinds: dict[str, list[Mutant]] = {}
        for mutant in every(tree, room):
            kinds.setdefault(mutant.kind, []).append(mutant)
        queues = [kinds[kind] for kind in sorted(kinds)]
        for queue in queues:
            generator.shuffle(queue)
        generator.shuffle(queues)
        taken: list[Mutant] = []
        while len(taken) < max(1, round(share * count / 60)) and any(queues):
            for queue in filter(None, queues):
                one = queue.pop()
                if (one.path, one.line) not in {(other.path, other.line) for other in taken}:
                    taken.append(one)
        chosen += taken[: max(1, round(share * count / 60))]
    return chosen


def every(tree: Path, room: str) -> Iterator[Mutant]:
    """All mutants of a room, file by file from top to bottom."""
    for path in sorted((tree / "diffpolicy" / room).rglob("*.py")):
        if path.name != "__init__.py":
            content = path.read_bytes()
            found = _Finder(str(path.relative_to(tree)), content)
            found.visit(ast.parse(content))
            yield from sorted(found.mutants, key=lambda one: (one.start, one.end, one.kind))


class _Finder(ast.NodeVisitor):
    """Collects the mutants of a file."""

    def __init__(self, path: str, content: bytes) -> None:
        self.mutants: list[Mutant] = []
        self._path, self._content, self._depth = path, content, 0
        self._starts = [0]
        for line in content.splitlines(keepends=True):
            self._starts.append(self._starts[-1] + len(line))

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        if node.name in ("__repr__", "__str__"):
            return
        self._depth += 1
        for statement in node.body:
            self.visit(statement)
        self._depth -= 1

    def visit_If(self, node: ast.If) -> None:
        """Skip the negation if the branch only raises: it would reject everything, which every test notices."""
        is_trivial = all(isinstance(statement, ast.Raise) for statement in node.body)
        if not is_trivial:
            self._note(node, (("negation", negation),))
        is_not = isinstance(node.test, ast.UnaryOp) and isinstance(node.test.op, ast.Not)
        self.visit(node.test.operand if is_trivial and is_not else node.test)
        for statement in [*node.body, *node.orelse]:
            self.visit(statement)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_arguments(self, node: ast.arguments) -> None:
        pass

    def visit_Raise(self, node: ast.Raise) -> None:
        pass

    def visit_Assert(self, node: ast.Assert) -> None:
        pass

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        pass

    def visit_Call(self, node: ast.Call) -> None:
        if _name(node.func) in SILENT:
            return
        self._note(node, CALLS)
        self.generic_visit(node)

    def generic_visit(self, node: ast.AST) -> None:
        self._note(node, CHANGES)
        super().generic_visit(node)

    def _note(self, node: ast.AST, changes: "Changes") -> None:
        if self._depth == 0:
            return
        for kind, change in changes:
            for place, text in change(node):
                start = self._starts[place.lineno - 1] + place.col_offset
                end = self._starts[place.end_lineno - 1] + place.end_col_offset
                before = self._content[start:end].decode()
                self.mutants.append(Mutant(self._path, place.lineno, kind, start, end, before, text))


Change = Callable[[ast.AST], Iterator[tuple[ast.expr, str]]]  # node -> (part to replace, replacement)
Changes = tuple[tuple[str, Change], ...]


def _name(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _text(node: ast.expr) -> str:
    return f"({ast.unparse(node)})"


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, TEXTUAL) or (isinstance(node, ast.Constant) and isinstance(node.value, str | bytes))


def _whole(node: ast.AST) -> int | None:
    """The value of a constant integer index; None for anything else."""
    sign = -1 if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) else 1
    inner = node.operand if isinstance(node, ast.UnaryOp) else node
    is_whole = isinstance(inner, ast.Constant) and type(inner.value) is int
    return sign * inner.value if is_whole else None


def sign(node: ast.AST) -> Iterator[tuple[ast.expr, str]]:
    """a + b to a - b and vice versa; -a to a."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub):
        if not (_is_text(node.left) or _is_text(node.right)):
            other = ast.Sub() if isinstance(node.op, ast.Add) else ast.Add()
            yield node, _text(ast.BinOp(node.left, other, node.right))
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and not isinstance(node.operand, ast.Constant):
        yield node, _text(node.operand)


def comparison(node: ast.AST) -> Iterator[tuple[ast.expr, str]]:
    """< to <=, == to != and so on, for the first operator of a chain."""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in ORDER:
        yield node, _text(ast.Compare(node.left, [ORDER[type(node.ops[0])](), *node.ops[1:]], node.comparators))


def index(node: ast.AST) -> Iterator[tuple[ast.expr, str]]:
    """Move a constant index or slice bound by one, away from 0."""
    if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
        indices = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        for one in indices:
            bounds = [one.lower, one.upper] if isinstance(one, ast.Slice) else [one]
            for bound in bounds:
                value = _whole(bound) if bound is not None else None
                if bound is not None and value is not None:
                    yield bound, str(value - 1 if value < 0 else value + 1)


def bound(node: ast.AST) -> Iterator[tuple[ast.expr, str]]:
    """Remove a clamp, clip or abs."""
    if isinstance(node, ast.Call) and _name(node.func) in BOUNDS:
        is_method = isinstance(node.func, ast.Attribute) and getattr(node.func.value, "id", "") not in MODULES
        if is_method:
            yield node, _text(node.func.value)
        elif node.args and not isinstance(node.args[0], ast.Starred):
            yield node, _text(node.args[0])


def swap(node: ast.AST) -> Iterator[tuple[ast.expr, str]]:
    """Swap the branches of a where, or minimum and maximum."""
    if not isinstance(node, ast.Call):
        return
    if _name(node.func) == "where" and len(node.args) == 3:
        condition, one, other = node.args
        yield node, _text(ast.Call(node.func, [condition, other, one], node.keywords))
    elif _name(node.func) in OPPOSITES:
        other_name = OPPOSITES[_name(node.func)]
        if isinstance(node.func, ast.Attribute):
            yield node.func, f"{ast.unparse(node.func.value)}.{other_name}"
        else:
            yield node.func, other_name


def constant(node: ast.AST) -> Iterator[tuple[ast.expr, str]]:
    """0 to 1 and 1 to 0 in a sum, product or comparison."""
    if isinstance(node, ast.BinOp | ast.Compare):
        operands = [node.left, node.right] if isinstance(node, ast.BinOp) else node.comparators
        for one in operands:
            if isinstance(one, ast.Constant) and type(one.value) in (int, float) and one.value in (0, 1):
                yield one, repr(type(one.value)(1 - one.value))


def junction(node: ast.AST) -> Iterator[tuple[ast.expr, str]]:
    """`and` to `or` and vice versa; swap the branches of x if a else y."""
    if isinstance(node, ast.BoolOp):
        yield node, _text(ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values))
    elif isinstance(node, ast.IfExp):
        yield node, _text(ast.IfExp(node.test, node.orelse, node.body))


def negation(node: ast.AST) -> Iterator[tuple[ast.expr, str]]:
    """Negate a condition or a returned comparison."""
    tested = node.test if isinstance(node, ast.If) else None
    if isinstance(node, ast.Return) and isinstance(node.value, ast.Compare | ast.BoolOp):
        tested = node.value
    if tested is not None:
        yield tested, f"(not {_text(tested)})"
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.Invert):
        yield node, _text(node.operand)


CHANGES: Changes = (
    ("sign", sign),
    ("comparison", comparison),
    ("index", index),
    ("constant", constant),
    ("junction", junction),
    ("negation", negation),
)
CALLS: Changes = (("bound", bound), ("swap", swap))
