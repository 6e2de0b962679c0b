"""The checkpoints of one training run: step_N folders, and the links `last` and `best`.

    checkpoints/step_1000/{config.json, model.safetensors}                                enough to act
    checkpoints/step_2000/{config.json, model.safetensors, training_state.safetensors}    enough to resume training
    checkpoints/{last, best}                                                              relative links

`last` moves only once its new target is complete, so a process that is killed at any point leaves a checkpoint to
resume from. The newest two keep their training state, in case the newest one is damaged. Where `last` was lost, or was
copied as a folder, the newest whole step is used. A step that was saved only because it was the best so far is removed
once there is a better one.
"""

import shlex
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from diffpolicy.policy.migration import migrated, migrated_tensors
from diffpolicy.policy.settings import check_metadata
from diffpolicy.system import checkpoint
from diffpolicy.system.advice import override
from diffpolicy.system.files import write_text
from diffpolicy.system.plain import read_bounded

ONLY_BEST = ".only_best"  # a list of steps, one a line
Content = tuple[dict[str, Any], Mapping[str, Tensor], Mapping[str, Tensor]]
"""(config.json, tensors of the averaged model, tensors of the training state)."""


class RunCheckpoints:
    """Writes and reads FOLDER/checkpoints; only one process may use it at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "checkpoints"
        self._written: set[int] = set()
        self._only_best: set[int] = set()  # steps that were saved for no other reason

    def check(self, resume: bool) -> None:
        """Raise ValueError unless there is a run to resume or, without `resume`, none that would be overwritten."""
        run, has_checkpoint = self._folder.parent, bool(self._steps()) or _exists(self._folder / "last")
        if has_checkpoint and not resume:
            raise ValueError(f"{run} holds a run; add resume=true to continue it, or choose another hydra.run.dir")
        if resume and not has_checkpoint:
            raise ValueError(f"resume=true: no checkpoint in {run}; give the run's folder with hydra.run.dir=DIR")

    def begin(self) -> None:
        """Remove the unfinished files of killed writers, and mend links that were lost or copied as folders.

        Raises:
            ValueError: no checkpoint can be resumed from.
        """
        for stale in self._folder.glob(".step_*"):
            shutil.rmtree(stale, ignore_errors=True)
        note = self._folder / ONLY_BEST
        found = read_bounded(note).decode(errors="replace").split() if note.is_file() else []
        self._only_best = {int(step) for step in found if step.isdecimal() and len(step) < 20}
        for name in ("best", "last"):
            self._adopt(self._folder / name)
        last = self._folder / "last"
        if self._steps() and not _exists(last):
            newest = self._of(self._newest_whole())
            checkpoint.point(last, newest)
            warnings.warn(
                f"resume: {last} was missing or not a link; it now points to {newest.name}, the newest intact step",
                stacklevel=2,
            )
        if self._only_best:
            self._remove_former()

    def write(
        self,
        step: int,
        config: Mapping[str, Any],
        model: Mapping[str, Tensor],
        state: Mapping[str, Tensor],
        is_best: bool = False,
    ) -> None:
        """Write step_N and point `last` at it, and `best` if `is_best`; replaces a step_N from an earlier process.

        Raises:
            OSError: it cannot be written; `last` is unchanged.
        """
        folder = self._of(step)
        if step not in self._written:
            if folder.exists():  # newer than the step that the run resumed from, perhaps damaged
                shutil.rmtree(folder)
            if is_best:
                self._keep_note(self._only_best | {step})
            checkpoint.write(folder, config, {"model": model, "training_state": state})
            self._written.add(step)
        if not is_best:
            self._keep_note(self._only_best - {step})
        if is_best:  # before `last`, because a run that resumes from `last` does not choose again
            checkpoint.point(self._folder / "best", folder)
        checkpoint.point(self._folder / "last", folder)
        if is_best:
            self._remove_former()
        for older in sorted(number for number in self._steps() if number < step)[:-1]:
            (self._of(older) / "training_state.safetensors").unlink(missing_ok=True)

    def _keep_note(self, only_best: set[int]) -> None:
        if only_best == self._only_best:
            return
        self._only_best, path = only_best, self._folder / ONLY_BEST
        if only_best:
            self._folder.mkdir(exist_ok=True)
            write_text(path, "".join(f"{step}\n" for step in sorted(only_best)))
        else:
            path.unlink(missing_ok=True)

    def _remove_former(self) -> None:
        """Remove the steps that were saved only as the best, and are neither that nor the last any more."""
        named = {checkpoint.resolve(self._folder / name).resolve().name for name in ("best", "last")}
        former = {step for step in self._only_best if self._of(step).name not in named}
        for folder in (self._of(step) for step in former if self._of(step).exists()):
            leaving = folder.rename(folder.with_name(f".{folder.name}.old"))  # `begin` removes it, if this is killed
            shutil.rmtree(leaving)
        self._written -= former
        self._keep_note(self._only_best - former)

    def read_last(self) -> Content:
        """Read and verify the checkpoint that `last` points at.

        Raises:
            ValueError: it is missing or damaged; the message names the newest intact checkpoint.
        """
        last = self._folder / "last"
        try:
            content, model, state = _read(checkpoint.resolve(last))
        except (OSError, ValueError) as error:
            raise ValueError(f"{error}; {self._advice(last)}") from error
        self._written.add(content["step"])  # never replace it: it may be the only one
        return content, model, state

    def _adopt(self, name: Path) -> None:
        """Turn a link that was copied as a folder (cp -L) into the step_N that it is, unless there is a whole one."""
        if name.is_symlink() or not name.is_dir():
            return
        try:
            step = int(_read(name)[0]["step"])
        except (OSError, ValueError) as error:
            raise ValueError(f"{name} is a folder, but no whole checkpoint ({error}); remove it") from error
        if self._is_whole(step):
            shutil.rmtree(name)
        else:
            shutil.rmtree(self._of(step), ignore_errors=True)
            name.rename(self._of(step))
        if name.name == "best":
            checkpoint.point(name, self._of(step))

    def left(self, can_go_on: bool) -> str:
        """A sentence for an error message: the last checkpoint and, if `can_go_on`, how to resume from it."""
        try:
            name = checkpoint.resolve(self._folder / "last").resolve(strict=True).name
        except (OSError, ValueError):
            return "no checkpoint had been written yet"
        resume = f"resume=true {override('hydra.run.dir', self._folder.parent)}"
        how = f": resume from it with {resume}" if can_go_on else ""
        return f"{self._folder / name}, the last one written, is intact{how}"

    def _advice(self, last: Path) -> str:
        try:
            name = self._of(self._newest_whole()).name
        except ValueError as error:
            return str(error)
        link = f"ln -sfn {name} {shlex.quote(str(last))}"
        return f"{name} is intact: to resume from it, run `{link}` and then the same command again"

    def _newest_whole(self) -> int:
        whole = next(filter(self._is_whole, sorted(self._steps(), reverse=True)), None)
        if whole is None:
            raise ValueError("no other checkpoint of this run can be resumed from: start again in another folder")
        return whole

    def _is_whole(self, step: int) -> bool:
        try:
            _read(self._of(step))
        except (OSError, ValueError):
            return False
        return True

    def _of(self, step: int) -> Path:
        return self._folder / f"step_{step}"

    def _steps(self) -> list[int]:
        names = [path.name.removeprefix("step_") for path in self._folder.glob("step_*")]
        return [int(name) for name in names if name.isdecimal()]


def _exists(path: Path) -> bool:
    return path.exists() or path.is_symlink()


def _read(folder: Path) -> Content:
    return checkpoint.load(folder, _content)


def _content(saved: checkpoint.Saved) -> Content:
    where = f"checkpoint: {saved.folder}"
    content = migrated(saved.config, where)
    check_metadata(content, where, required=("step", "training"))
    model, state = (saved.tensors(name, None, migrated_tensors) for name in ("model", "training_state"))
    return content, model, state
