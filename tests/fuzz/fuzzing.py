"""Fuzz everything that is read from disk or a command line: python tests/fuzz/fuzzing.py cases=20000 seed=0 workers=2

Each case changes one thing at random in a checkpoint, a training state, a data set or a command line, makes the hashes
right again where there are any, and loads it. It must be refused in one line, or load what is in the file, within 1 GB
and 10 s. Prints the number of cases by kind, and the cases that were neither. Case i of a seed is always the same:
`first=i cases=1` runs it alone. `kinds=config,state` runs some kinds only.
"""

import collections
import multiprocessing
import random
import shutil
import sys
import tempfile
import time
import warnings
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

import checkpoints  # noqa: E402
import overrides  # noqa: E402
import stores  # noqa: E402
from judge import FAULTS, MOST_SECONDS, Verdict, judged, protect_machine  # noqa: E402

Found = dict[int, tuple[str, Verdict]]
"""Number of a case -> (its kind, its verdict)."""

KINDS = {  # name -> (maker of a case, share of the cases)
    "config": (checkpoints.config_case, 7),
    "weights": (checkpoints.weights_case, 3),
    "state": (checkpoints.state_case, 3),
    "store": (stores.store_case, 3),
    "remarked": (stores.remarked_case, 1),
    "foreign": (stores.foreign_case, 2),
    "override": (overrides.override_case, 1),
}
PATIENCE_S = 6 * MOST_SECONDS  # until a case counts as hanging; its time is judged when it ends
BATCH = 250  # cases a process runs before another takes its place


def kind_of(case: int, kinds: list[str]) -> str:
    """The kind of a case, in turns by their shares."""
    turns = [name for name in kinds for _ in range(KINDS[name][1])]
    return turns[case % len(turns)]


def run_case(case: int, seed: int, kind: str, base: Path) -> Verdict:
    """Make a case, load it, and judge what came of it."""
    folder = Path(tempfile.mkdtemp(dir=base))
    try:
        what, load = KINDS[kind][0](base, folder, random.Random(f"{seed} {case}"))
        return judged(what, load)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def fuzz(first: int, cases: int, seed: int, workers: int, kinds: list[str], base: Path) -> Found:
    """The verdict of every case. A process that dies is replaced."""
    stores.prepare(base)
    checkpoints.prepare(base)
    context = multiprocessing.get_context("fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn")
    left = collections.deque(range(first, first + cases))
    found: Found = {}
    running: dict[Connection, tuple[Any, collections.deque[int], float]] = {}
    while left or running:
        while left and len(running) < workers:
            batch = collections.deque(left.popleft() for _ in range(min(BATCH, len(left))))
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_work, args=(theirs, list(batch), seed, kinds, base))
            process.start()
            theirs.close()
            running[ours] = (process, batch, time.monotonic())
        ready = wait(list(running), timeout=1.0)
        for pipe in list(running):
            process, batch, since = running[pipe]
            try:
                if pipe in ready:
                    verdict: Verdict | None = pipe.recv()
                    running[pipe] = (process, batch, time.monotonic())
                elif time.monotonic() - since > PATIENCE_S:
                    process.kill()
                    verdict = Verdict("over budget", "", f"no end after {PATIENCE_S:.0f} s")
                else:
                    continue
            except EOFError:
                process.join()
                verdict = Verdict("signal", "", f"the process ended with {process.exitcode}") if batch else None
            if verdict is not None:
                case = batch.popleft()
                found[case] = (kind_of(case, kinds), verdict)
            if verdict is None or (not process.is_alive() and not pipe.poll()):
                process.join()
                left.extendleft(reversed(batch))
                del running[pipe]
    return found


def _work(pipe: Connection, batch: list[int], seed: int, kinds: list[str], base: Path) -> None:
    warnings.simplefilter("ignore")
    protect_machine()
    for case in batch:
        pipe.send(run_case(case, seed, kind_of(case, kinds), base))


def table(found: Found) -> str:
    """The number of cases by kind and verdict, with the longest time and the largest memory."""
    names = ("refused", "loaded", *FAULTS)
    lines = [f"{'':9}" + "".join(f"{name:>12}" for name in (*names, "most s", "most MB"))]
    for kind in KINDS:
        of_kind = [verdict for name, verdict in found.values() if name == kind]
        if of_kind:
            counts = collections.Counter(verdict.kind for verdict in of_kind)
            most = f"{max(one.seconds for one in of_kind):12.1f}{max(one.megabytes for one in of_kind):12.0f}"
            lines.append(f"{kind:9}" + "".join(f"{counts[name]:12}" for name in names) + most)
    return "\n".join(lines)


def faults(found: Found) -> list[str]:
    """One text for each case that was neither refused cleanly nor loaded soundly."""
    wrong = {case: verdict for case, (_, verdict) in sorted(found.items()) if verdict.kind in FAULTS}
    return [f"case {case}: {one.kind}: {one.what}\n    {one.said}" for case, one in wrong.items()]


def main() -> None:
    """Run as the arguments say; the exit status is 1 if there are faults."""
    asked = {"first": "0", "cases": "500", "seed": "0", "workers": "2", "kinds": ",".join(KINDS)}
    asked |= dict(argument.split("=", 1) for argument in sys.argv[1:])
    numbers = {name: int(asked[name]) for name in ("first", "cases", "seed", "workers")}
    with tempfile.TemporaryDirectory() as base:
        found = fuzz(**numbers, kinds=asked["kinds"].split(","), base=Path(base))
    wrong = faults(found)
    print("\n".join([*wrong, table(found)]))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
