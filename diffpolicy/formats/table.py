"""The formats by name: what opens them, and what writes them. Each loads its packages when it is first used."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from diffpolicy.formats.recording import Recording
from diffpolicy.formats.to_zarr import write_zarr
from diffpolicy.formats.zarr_source import open_zarr
from diffpolicy.system.files import staging, sync_folder
from diffpolicy.system.schema import OneOf, Range
from diffpolicy.system.tables import lookup
from diffpolicy.system.time_limits import LimitsConfig


@dataclass
class WriteSettings:
    """How to write a data set; each format reads what concerns it."""

    fps: Annotated[float, Range(above=0.0, most=1e5)] | None = None  # lerobot: where the data set does not say it
    images: Annotated[str, OneOf("png", "video")] = "png"  # lerobot: exact, or small
    task: str = ""  # lerobot, robomimic: where the data set does not name one
    workers: Annotated[int, Range(1, 1024)] = 1  # zarr: processes
    limit_s: Annotated[float, Range(above=0.0)] = LimitsConfig.data_s  # how long a worker may take for one part


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Say which extra to install if a package is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ImportError(f"format {name}: needs {error.name}; pip install 'diffpolicy[formats]'") from error


def _open_lerobot(location: str) -> Recording:
    with extra("lerobot"):
        from diffpolicy.formats.lerobot import open_lerobot
    return open_lerobot(location)


def _open_robomimic(location: str) -> Recording:
    with extra("robomimic"):
        from diffpolicy.formats.robomimic import open_robomimic
    return open_robomimic(location)


def _open_minari(location: str) -> Recording:
    with extra("minari"):
        from diffpolicy.formats.minari import open_minari
    return open_minari(location)


def _write_zarr(source: Recording, keys: list[str], output: Path, settings: WriteSettings) -> None:
    write_zarr(source, keys, output, settings.workers, settings.limit_s)


def _write_lerobot(source: Recording, keys: list[str], output: Path, settings: WriteSettings) -> None:
    with extra("lerobot"):
        from diffpolicy.formats.to_lerobot import write_lerobot
    with staging(output) as folder:
        write_lerobot(source, keys, folder, settings.fps, settings.images == "video", settings.task)


def _write_robomimic(source: Recording, keys: list[str], output: Path, settings: WriteSettings) -> None:
    with extra("robomimic"):
        from diffpolicy.formats.robomimic import write_robomimic
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}.{uuid.uuid4().hex}.partial")
    try:
        write_robomimic(source, keys, temporary, settings.task)
        os.replace(temporary, output)
        sync_folder(output.parent)
    finally:
        temporary.unlink(missing_ok=True)


READERS: Mapping[str, Callable[[str], Recording]] = {
    "lerobot": _open_lerobot,
    "robomimic": _open_robomimic,
    "minari": _open_minari,
    "zarr": open_zarr,
}
WRITERS: Mapping[str, Callable[[Recording, list[str], Path, WriteSettings], None]] = {
    "zarr": _write_zarr,
    "lerobot": _write_lerobot,
    "robomimic": _write_robomimic,
}


def open_recording(location: str, name: str) -> Recording:
    """Open a data set of the format called `name`; raises as that format, or ValueError for an unknown one."""
    return lookup(READERS, "format", name)(location)
