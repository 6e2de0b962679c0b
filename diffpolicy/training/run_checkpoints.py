"""The checkpoints of one training run: step_N folders, and the names `last` and `best`.

    checkpoints/step_1000/{config.json, model.safetensors}                                what acts
    checkpoints/step_2000/{config.json, model.safetensors, training_state.safetensors}    what training goes on from
    checkpoints/{last, best}                                                              relative links

`last` changes only when the folder that it will name is whole, so a process killed at any moment leaves one to resume
from. The newest two keep their training state: the second is for the day when the first is found damaged.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from diffpolicy.policy.migration import migrated, migrated_tensors
from diffpolicy.system import checkpoint

Content = tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]
"""config.json, the tensors of the averaged model, those of the training state."""


class RunCheckpoints:
    """Writes to and reads from FOLDER/checkpoints, for one process at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "checkpoints"
        self._written: set[int] = set()

    def clean(self) -> None:
        """Remove what killed writers left."""
        for stale in self._folder.glob(".step_*"):
            shutil.rmtree(stale, ignore_errors=True)

    def write(
        self,
        step: int,
        config: Mapping[str, Any],
        model: Mapping[str, Tensor],
        state: Mapping[str, Tensor],
        is_best: bool = False,
    ) -> None:
        """Write step_N, and let `last`, and `best` if it is, name it; what an earlier process left there is replaced.

        Raises:
            OSError: it cannot be written; `last` is as before.
        """
        folder = self._of(step)
        if step not in self._written:
            if folder.exists():  # past the point from which the run was resumed, perhaps damaged
                shutil.rmtree(folder)
            checkpoint.write(folder, config, {"model": model, "training_state": state})
            self._written.add(step)
        if is_best:  # before `last`: a run that is resumed from there must not have to choose it again
            checkpoint.point(self._folder / "best", folder)
        checkpoint.point(self._folder / "last", folder)
        for older in sorted(number for number in self._steps() if number < step)[:-1]:
            (self._of(older) / "training_state.safetensors").unlink(missing_ok=True)

    def read_last(self) -> Content:
        """What `last` names, verified.

        Raises:
            ValueError: it is missing or damaged; the message names the newest that is not.
        """
        last = self._folder / "last"
        try:
            content, model, state = _read(checkpoint.resolve(last))
        except (OSError, ValueError) as error:
            raise ValueError(f"{error}; {self._advice(last)}") from error
        self._written.add(int(content["step"]))  # never to be replaced: there may be no other
        return content, model, state

    def left(self, can_go_on: bool) -> str:
        """What an error says of them: which is the last, and how to go on from it."""
        try:
            name = checkpoint.resolve(self._folder / "last").resolve(strict=True).name
        except (OSError, ValueError):
            return "no checkpoint had been written yet"
        how = f": go on from it with resume=true hydra.run.dir={self._folder.parent}" if can_go_on else ""
        return f"{self._folder / name}, the last one written, is as it was{how}"

    def _advice(self, last: Path) -> str:
        for step in sorted(self._steps(), reverse=True):
            try:
                _read(self._of(step))
            except (OSError, ValueError):
                continue
            name = self._of(step).name
            return f"{name} is whole: to go on from it, run `ln -sfn {name} {last}` and then the same command again"
        return "no other checkpoint of this run can be resumed from: begin anew in another folder"

    def _of(self, step: int) -> Path:
        return self._folder / f"step_{step}"

    def _steps(self) -> list[int]:
        names = [path.name.removeprefix("step_") for path in self._folder.glob("step_*")]
        return [int(name) for name in names if name.isdecimal()]


def _read(folder: Path) -> Content:
    content = checkpoint.read_config(folder)
    model, state = (
        migrated_tensors(content["format_version"], checkpoint.read_tensors(folder, name))
        for name in ("model", "training_state")
    )
    return migrated(content), model, state
