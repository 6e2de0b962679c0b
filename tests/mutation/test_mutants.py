"""The mutants themselves: always the same, each a program, and made in a copy only."""

import ast
from pathlib import Path

import mutants

TREE = Path(__file__).parents[2]


def test_the_same_seed_chooses_the_same_60_and_another_seed_others() -> None:
    first = mutants.choose(TREE)
    assert len(first) == 60
    assert first == mutants.choose(TREE)
    assert first != mutants.choose(TREE, seed=1)
    assert {one.room for one in first} == set(mutants.SHARES)
    assert {one.kind for one in first} == {name for name, _ in (*mutants.CHANGES, *mutants.CALLS)}


def test_every_mutant_is_another_program_that_can_be_read() -> None:
    for mutant in mutants.choose(TREE):
        before = (TREE / mutant.path).read_bytes()
        after = ast.parse(mutant.apply(before))
        assert ast.dump(after) != ast.dump(ast.parse(before)), mutant


def changes(folder: Path, source: str) -> set[tuple[str, str]]:
    path = folder / "diffpolicy" / "room" / "file.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)
    return {(one.before, one.after) for one in mutants.every(folder, "room")}


def test_what_is_changed(tmp_path: Path) -> None:
    for expression, expected in {
        "a - b": {("a - b", "(a + b)")},
        "-a": {("-a", "(a)")},
        "a[1:, -1]": {("1", "2"), ("-1", "-2")},
        "f(a < 2)": {("a < 2", "(a <= 2)")},
        "x.clamp(low, high)": {("x.clamp(low, high)", "(x)")},
        "np.abs(x)": {("np.abs(x)", "(x)")},
        "torch.where(a, b, c)": {("torch.where(a, b, c)", "(torch.where(a, c, b))")},
        "x.amin(1)": {("x.amin", "x.amax")},
        "a * 0": {("0", "1")},
        "f(a and b)": {("a and b", "(a or b)")},
        "a is b": {("a is b", "(not (a is b))")},
    }.items():
        assert changes(tmp_path, f"def f():\n    return {expression}\n") == expected, expression


def test_what_is_left_alone(tmp_path: Path) -> None:
    source = '''
LIMIT = 3 - 1
def f(x: a[0] = 1 - 1) -> b[1]:
    """a - b"""
    if not x:
        raise ValueError(f"{x - 1}" + str(x[0] - 1))
    y: c[0] = "a" + x
    return [x] + y
def __repr__(self):
    return self.x - 1
'''
    assert changes(tmp_path, source) == set()
