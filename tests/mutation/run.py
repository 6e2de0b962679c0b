"""Find which test notices which mutant: python tests/mutation/run.py

Every mutant is applied to a copy of the tree in a temporary folder. The tests run there until the first failure, those
of the mutant's own room first. A run that takes too long counts as noticed. The tree itself is only read.
"""

import argparse
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import mutants

TREE = Path(__file__).parents[2]
# Rooms whose tests run after those of the mutant's own room and before all others.
NEIGHBOURS = ("diffusion", "constraints", "codecs", "networks", "safety", "policy", "control", "data", "evaluation")
AGAIN = ("test_instruction_sets.py",)  # repeats other tests
NO_TESTS = 5  # pytest's exit status
NOTICED = re.compile(r"^(?:FAILED|ERROR) (\S.*?)(?: - .*)?$", re.MULTILINE)
NOT_COPIED = (".git", ".venv", "outputs", "__pycache__", ".*_cache", ".hypothesis", "dist", "build")


@dataclass(frozen=True)
class Outcome:
    """The result of the tests on a mutant; `by` is the test that noticed it, empty if it survived."""

    number: int
    mutant: mutants.Mutant
    by: str
    seconds: float


class Copy:
    """A copy of a tree that its tests run in."""

    def __init__(self, tree: Path, folder: Path) -> None:
        self.folder = folder
        ignored = shutil.ignore_patterns(*NOT_COPIED)
        shutil.copytree(
            tree, folder, ignore=lambda at, names: {*ignored(at, names), *(["data"] if Path(at) == tree else [])}
        )
        (folder / "data").symlink_to(tree / "data")
        paths = [str(folder), str(folder / "envs")]
        self._environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1"}
        self._environment |= {"OMP_NUM_THREADS": "1"}
        where = self._python("-c", "import diffpolicy; print(diffpolicy.__file__)", timeout=300).stdout.strip()
        assert Path(where).is_relative_to(folder), f"the tests would run on {where}, not on the copy"

    def test(self, room: str, skipped: list[str], timeout_s: float, stop: bool = True) -> list[str]:
        """The tests that fail, those of `room` first; only the first one if `stop`."""
        settings = ["-q", "--no-header", "-rfE", "--tb=no", "-p", "no:cacheprovider", "-m", "not slow"]
        settings += [*(["-x"] if stop else []), *(f"--deselect={name}" for name in skipped)]
        found: list[str] = []
        for stage in self._stages(room):
            try:
                done = self._python("-m", "pytest", *settings, *stage, timeout=timeout_s)
            except subprocess.TimeoutExpired:
                found.append("took too long")
            else:
                found += NOTICED.findall(done.stdout)
                if done.returncode not in (0, 1, NO_TESTS):
                    found.append(f"pytest ended with {done.returncode}")
            if found and stop:
                break
        return found[:1] if stop else found

    def _stages(self, room: str) -> list[list[str]]:
        """The room's own tests, those of the core, and all others, so that none is loaded before it is needed."""
        tests = self.folder / "tests"
        folders = {path.name for path in tests.iterdir() if any(path.glob("test_*.py"))} - {"mutation"}
        near = [name for name in NEIGHBOURS if name in folders and name != room]
        far = [*sorted(folders - {room, *near}), *sorted(path.name for path in tests.glob("test_*.py"))]
        stages = [[room] if room in folders else [], near, [name for name in far if name not in AGAIN]]
        return [[f"tests/{name}" for name in stage] for stage in stages if stage]

    def _python(self, *arguments: str, timeout: float) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *arguments]
        process = subprocess.Popen(
            command,
            cwd=self.folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            out, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)  # including its workers
            process.communicate()
            raise
        return subprocess.CompletedProcess(command, process.returncode, out)


def try_out(copy: Copy, number: int, mutant: mutants.Mutant, skipped: list[str], timeout_s: float) -> Outcome:
    path = copy.folder / mutant.path
    content, start = path.read_bytes(), time.monotonic()
    path.write_bytes(mutant.apply(content))
    try:
        found = copy.test(mutant.room, skipped, timeout_s)
    finally:
        path.write_bytes(content)
    return Outcome(number, mutant, found[0] if found else "", time.monotonic() - start)


def table(outcomes: list[Outcome]) -> str:
    """A Markdown table with one line per mutant."""
    noticed = sum(bool(one.by) for one in outcomes)
    lines = [f"{noticed} of {len(outcomes)} mutants are noticed.", "", "| mutant | place | change | noticed by | s |"]
    lines.append("|---|---|---|---|---|")
    for one in outcomes:
        mutant = one.mutant
        change = f"`{mutant.before}` -> `{mutant.after}`".replace("|", "\\|").replace("\n", " ")
        place = f"{mutant.path.removeprefix('diffpolicy/')}:{mutant.line}"
        lines.append(
            f"| {one.number} {mutant.kind} | {place} | {change} | {one.by or '**survived**'} | {one.seconds:.0f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tree", type=Path, default=TREE, help="what is copied: diffpolicy, envs, tests, ...")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--only", type=int, nargs="*", help="numbers of the mutants to try")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--timeout", type=float, default=1200.0, help="seconds for each of a mutant's three runs of pytest"
    )
    parser.add_argument("--list", action="store_true", help="show the mutants, run nothing")
    parser.add_argument("--skip", nargs="*", help="tests that fail anyway; by default they are found out first")
    parser.add_argument("--output", type=Path, default=TREE / "outputs" / "mutants.md")
    chosen = parser.parse_args()
    found = list(enumerate(mutants.choose(chosen.tree, chosen.seed, chosen.count)))
    found = [found[number] for number in chosen.only] if chosen.only else found
    if chosen.list:
        print(table([Outcome(number, mutant, "not tried", 0.0) for number, mutant in found]))
        return
    with tempfile.TemporaryDirectory() as folder:
        copies: queue.Queue[Copy] = queue.Queue()
        for number in range(chosen.workers):
            copies.put(Copy(chosen.tree.resolve(), Path(folder) / str(number)))
        skipped = chosen.skip
        if skipped is None:
            skipped = copies.queue[0].test("diffusion", [], 4 * chosen.timeout, stop=False)
            print(f"fail without a mutant: {skipped or 'none'}", flush=True)
        lock = threading.Lock()

        def work(numbered: tuple[int, mutants.Mutant]) -> Outcome:
            number, mutant = numbered
            copy = copies.get()
            try:
                outcome = try_out(copy, number, mutant, skipped, chosen.timeout)
            finally:
                copies.put(copy)
            with lock:
                print(f"{number} {mutant.path}:{mutant.line} {mutant.kind}: {outcome.by or 'SURVIVED'}", flush=True)
            return outcome

        with ThreadPoolExecutor(chosen.workers) as pool:
            outcomes = list(pool.map(work, found))
    chosen.output.parent.mkdir(parents=True, exist_ok=True)
    chosen.output.write_text(table(outcomes), encoding="utf-8")
    print(table(outcomes).splitlines()[0], chosen.output)


if __name__ == "__main__":
    main()
