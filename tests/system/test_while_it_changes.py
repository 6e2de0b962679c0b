"""A checkpoint that is loaded while a run goes on saving comes whole from one step."""

import multiprocessing
import shutil
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
import torch

from diffpolicy.system import checkpoint

SIZE = 1000


def save_without_end(folder: Path, stop: Event) -> None:
    """Save step after step, point `last` at each, remove old ones, and replace one in its place."""
    step = 0
    while not stop.is_set():
        step += 1
        for name in (f"step_{step}", "again"):
            shutil.rmtree(folder / name, ignore_errors=True)
            tensors = {"value": torch.full((SIZE,), float(step))}
            checkpoint.write(folder / name, {"step": step}, {"model": tensors, "training_state": tensors})
            checkpoint.point(folder / "last", folder / name)
        shutil.rmtree(folder / f"step_{step - 3}", ignore_errors=True)


def check_loads(folder: Path, loads: int) -> int:
    """Load `last` again and again; returns how many different steps were seen."""
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    writer = context.Process(target=save_without_end, args=(folder, stop))
    writer.start()
    try:
        while not (folder / "last").exists():
            assert writer.is_alive()
        seen: set[int] = set()
        for _ in range(loads):
            step, *values = checkpoint.load(
                folder / "last",
                lambda saved: (saved.config["step"], saved.tensors("model"), saved.tensors("training_state")),
            )
            assert {float(one) for value in values for one in value["value"].unique()} == {float(step)}
            seen.add(step)
        return len(seen)
    finally:
        stop.set()
        writer.join()


def test_what_is_loaded_is_of_one_step(tmp_path: Path) -> None:
    assert check_loads(tmp_path, 100) > 1


@pytest.mark.slow
def test_a_thousand_loads_are_each_of_one_step(tmp_path: Path) -> None:
    assert check_loads(tmp_path, 1000) > 10
