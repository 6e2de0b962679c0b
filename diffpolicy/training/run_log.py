"""Logging of a run's metrics: metrics.jsonl, figures/curves.png and, optionally, Weights & Biases."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from diffpolicy.system.files import write_text
from diffpolicy.system.plain import MAX_BYTES, parsed, read_bounded
from diffpolicy.system.schema import Range, read
from diffpolicy.training.settings import LoggerConfig

PANELS = {  # title -> metrics drawn in the panel
    "loss": ("loss", "validation_loss", "validation_action_error"),
    "score": ("mean_score", "success_rate"),
    "learning rate": ("learning_rate",),
    "gradient norm": ("grad_norm",),
}


class Metrics:
    """Appends rows {"step": ..., name: value} to FOLDER/metrics.jsonl.

    On resume, rows after `step` are dropped, and a run of Weights & Biases goes on.

    Raises:
        ValueError: wandb is not installed or does not start.
    """

    def __init__(self, folder: Path, logger: LoggerConfig, config: Mapping[str, Any], step: int = 0) -> None:
        self._folder = folder
        self._path = folder / "metrics.jsonl"
        self.rows = [row for row in _read(self._path) if row["step"] <= step]
        text = "".join(json.dumps(row) + "\n" for row in self.rows)
        write_text(self._path, text)
        self._wandb = _start_wandb(folder, logger, config, is_resumed=step > 0)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append a row."""
        self.rows.append({"step": step, **values})
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(self.rows[-1]) + "\n")
        if self._wandb is not None:
            self._wandb.log(dict(values), step=step)

    def values(self, step: int, name: str) -> list[float]:
        """The values of a metric in the rows of a step."""
        return [row[name] for row in self.rows if row["step"] == step and name in row]

    def plot(self) -> None:
        """Draw figures/curves.png from all rows."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 6), layout="constrained")
        for axes, (title, names) in zip(figure.subplots(2, 2).flat, PANELS.items(), strict=True):
            for name in names:
                points = [(row["step"], row[name]) for row in self.rows if name in row]
                if points:
                    axes.plot(*zip(*points, strict=True), label=name, marker="o" if len(points) < 30 else None)
            axes.set(title=title, xlabel="step")
            if title == "loss":
                axes.set_yscale("log")
            if title == "score":
                axes.set_ylim(0, 1.02)
            if axes.get_legend_handles_labels()[0]:
                axes.legend()
        path = self._folder / "figures" / "curves.png"
        path.parent.mkdir(exist_ok=True)
        figure.savefig(path, dpi=120)

    def close(self) -> None:
        """Finish the Weights & Biases run, if there is one."""
        if self._wandb is not None:
            self._wandb.finish()


class NoMetrics:
    """No-op logger for the other ranks."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        pass

    def plot(self) -> None:
        pass

    def close(self) -> None:
        pass


def _read(path: Path) -> list[dict[str, Any]]:
    """Read the rows; a last line that a killed process left unfinished is dropped.

    Raises:
        ValueError: a line is no row of finite numbers, or the file is too large.
    """
    content = read_bounded(path) if path.exists() else b""
    if len(content) > MAX_BYTES:
        raise ValueError(f"{path} has more than {MAX_BYTES} bytes; move it away to go on without its rows")
    lines = content.split(b"\n")
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        where = f"{path}, line {number}"
        try:
            content = parsed(line, where)
            row = read(dict[str, float], content, where)
            rows.append({**row, "step": read(Annotated[int, Range(least=0)], content.get("step"), f"{where}: step")})
        except ValueError as error:
            if number < len(lines):
                raise ValueError(f"{error}; remove the line to go on without it") from error
    return rows


def _start_wandb(folder: Path, logger: LoggerConfig, config: Mapping[str, Any], is_resumed: bool) -> Any:
    """Start a run of Weights & Biases, or continue the one whose id is in FOLDER/wandb_id.txt."""
    if logger.name == "none":
        return None
    try:
        import wandb
    except ImportError as error:
        raise ValueError("logger: wandb is not installed; run: pip install 'diffpolicy[wandb]'") from error
    path = folder / "wandb_id.txt"
    known = path.read_text(encoding="utf-8").strip() if is_resumed and path.exists() else None
    where = {"project": logger.project, "mode": logger.mode, "dir": str(folder)}
    try:
        run = wandb.init(**where, config=dict(config), id=known, resume="allow" if known else None)
    except wandb.Error as error:
        raise ValueError(f"logger: wandb does not start: {error}; without a login use logger.mode=offline") from error
    write_text(path, run.id)
    return run
