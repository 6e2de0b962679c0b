"""Converting a data set from one format to another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from diffpolicy.formats.recording import Recording
from diffpolicy.formats.table import WRITERS, WriteSettings
from diffpolicy.system.schema import check_settings
from diffpolicy.system.tables import lookup


def convert(
    source: Recording, output: Path, to: str, settings: WriteSettings | None = None, leave_out: Sequence[str] = ()
) -> None:
    """Write an opened data set to `output` in the format `to`: zarr, lerobot or robomimic.

    Nothing is at `output` before all of it is. A conversion to zarr goes on where it was interrupted.

    Args:
        leave_out: arrays that are not written. Those that cannot be read, such as texts, must be named here.

    Raises:
        FileExistsError: there is something at `output`.
        FileNotFoundError, ValueError: a file of the source is missing or damaged, or cannot be written in the format.
    """
    settings = settings or WriteSettings()
    check_settings(settings, "convert")
    write = lookup(WRITERS, "to", to)
    keys = chosen_keys(source, leave_out)
    if not source.n_episodes:
        raise ValueError(f"{source.location}: holds no episodes")
    found = source.about.get("fps")
    if settings.fps is not None and found is not None and abs(found / settings.fps - 1) > 1e-6:
        raise ValueError(f"{source.location}: has {found:g} steps per second, but fps is {settings.fps:g}")
    if output.exists():
        raise FileExistsError(f"{output}: exists already; remove it or choose another output")
    write(source, keys, output, settings)


def chosen_keys(source: Recording, leave_out: Sequence[str]) -> list[str]:
    """The arrays to write; raises ValueError if one of the others cannot be read, or `leave_out` names no array."""
    known = [*source.keys, *source.unreadable]
    if unknown := sorted(set(leave_out) - set(known)):
        raise ValueError(f"leave_out names {unknown}, expected some of {known}")
    if left := [key for key in source.unreadable if key not in leave_out]:
        names = ",".join(sorted({*leave_out, *left}))
        raise ValueError(f"{source.location}: {source.unreadable[left[0]]}; leave it out with 'leave_out=[{names}]'")
    keys = [key for key in source.keys if key not in leave_out]
    if not keys:
        raise ValueError(f"{source.location}: leave_out leaves no array")
    return keys
