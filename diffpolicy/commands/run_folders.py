"""Run folders and sweeps: every run has a folder of its own, and a job that fails does not end its sweep."""

import os
import sys
import traceback
from itertools import count
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from diffpolicy.system.children import stop_with

FAILED = "failed.txt"  # in the folder of a sweep: one line for each job that failed


class RunFolders(Callback):
    """Creates the run folder before hydra does. One that is named by the time gets a suffix if it exists already."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Create the folder of a single run; of several processes of torchrun, only the first one needs its own."""
        if os.environ.get("RANK", "0") == "0" or "LOCAL_RANK" not in os.environ:
            _create(config, "run")

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Create the folder of a sweep."""
        (_create(config, "sweep") / FAILED).unlink(missing_ok=True)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """List the jobs of a sweep that failed, if any, and exit with status 1."""
        path = Path(config.hydra.sweep.dir) / FAILED
        if path.exists():
            print(f"error: jobs of this sweep failed, see {path}:\n{path.read_text(encoding='utf-8')}", file=sys.stderr)
            sys.exit(1)


def begin_job() -> None:
    """Stop this job when the process that launched it on this machine ends."""
    launcher = OmegaConf.select(HydraConfig.get(), "launcher._target_") or ""
    if _is_in_sweep() and "joblib" in launcher:
        stop_with(os.getppid())


def fail(message: str, is_unexpected: bool = False) -> None:
    """Print the error and exit with status 1; in a sweep, note it and return, so that the next job can begin."""
    if is_unexpected and not _is_in_sweep():
        raise
    if is_unexpected:
        traceback.print_exc()
    print(f"error: {message}", file=sys.stderr)
    if not _is_in_sweep():
        sys.exit(1)
    config = HydraConfig.get()
    line = f"{config.job.num}: {' '.join(config.overrides.task)}: {' '.join(message.split())}\n"
    with open(Path(config.sweep.dir) / FAILED, "a", encoding="utf-8") as file:
        file.write(line)


def open_standard_streams() -> None:
    """Open the streams that the caller closed (2>&-) as nothing, so that no other file takes their place."""
    for descriptor, name in ((0, "stdin"), (1, "stdout"), (2, "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)
            setattr(sys, name, os.fdopen(descriptor, "r" if descriptor == 0 else "w"))


def _is_in_sweep() -> bool:
    return not OmegaConf.is_missing(HydraConfig.get().job, "num")


def _create(config: DictConfig, kind: str) -> Path:
    """Create hydra.KIND.dir; the process exits with an error message if that is not possible."""
    named: dict = OmegaConf.to_container(config.hydra[kind], resolve=False)  # type: ignore[assignment]
    folder = Path(config.hydra[kind].dir)
    try:
        if "${now:" not in str(named["dir"]):
            folder.mkdir(parents=True, exist_ok=True)
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        times = OmegaConf.get_cache(config)["now"]  # what ${now:...} stands for in this run and in the jobs of a sweep
        before = dict(times)
        for number in count(2):
            try:
                folder.mkdir()
                break
            except FileExistsError:
                times.update({pattern: f"{time}_{number}" for pattern, time in before.items()})
                folder = Path(config.hydra[kind].dir)
    except OSError as error:  # hydra would print a traceback, or only a warning
        reason = "it is a file" if isinstance(error, FileExistsError | NotADirectoryError) else str(error)
        print(f"error: hydra.{kind}.dir: {folder} cannot be a folder: {reason}; choose another one", file=sys.stderr)
        sys.exit(1)
    return folder
