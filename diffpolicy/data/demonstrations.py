"""The training view of a data set: actions and observations, put together from its arrays as the task says."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from diffpolicy.data.replay_buffer import ReplayBuffer
from diffpolicy.data.source import DataSource
from diffpolicy.data.stream import Columns, StreamedRows, joined

# More flattened columns than this in one array is taken for an image, which the low-dimensional view does not hold.
MAX_COLUMNS = 1024
_COLUMNS = re.compile(r"(?P<key>[^\[\]]+)(\[(?P<start>\d*):(?P<stop>\d*)\])?")


@dataclass(frozen=True)
class Demonstrations:
    """Row i of every tensor is one step; the observation of a row precedes its action."""

    actions: torch.Tensor  # float32 [n_steps, action_dim]
    observations: Mapping[str, torch.Tensor | StreamedRows]  # name -> float32 [n_steps, dim], or what stays on disk
    episode_ends: np.ndarray  # int64 [n_episodes], one past each episode's last row

    @property
    def n_episodes(self) -> int:
        return len(self.episode_ends)

    @property
    def n_steps(self) -> int:
        return len(self.actions)


def load_demonstrations(
    location: str | os.PathLike[str],
    observations: Mapping[str, Sequence[str]],
    action: str = "action",
    stream: Sequence[str] = (),
    open_source: Callable[[str], DataSource] = ReplayBuffer.open,
) -> Demonstrations:
    """Read a data set as a task describes it, e.g. observations={"keypoints": ["keypoint", "state[:2]"]}.

    Each observation joins its parts column-wise; a part is the name of an array, flattened to [n_steps, columns], with
    an optional range of columns. Those named in `stream` stay on disk, and may be images: one array [n_steps, height,
    width, channels]. Raises ValueError on unknown arrays or names, empty ranges, images elsewhere, NaN or inf, no
    episodes.
    """
    with contextlib.ExitStack() as opened:
        buffer = open_source(str(location))
        opened.callback(buffer.close)
        if not buffer.n_episodes:
            raise ValueError(f"{location}: holds no episodes; record some with append_episode")
        if not observations:
            raise ValueError(f'{location}: no observations named, expected e.g. {{"state": ["state"]}}')
        if unknown := sorted(set(stream) - set(observations)):
            raise ValueError(f"{location}: stream names {unknown}, expected some of {sorted(observations)}")
        found = Demonstrations(
            actions=_read(buffer, "action", [action]),
            observations={
                name: (_stream if name in stream else _read)(buffer, name, parts)
                for name, parts in observations.items()
            },
            episode_ends=buffer.episode_ends,
        )
        if stream:
            opened.pop_all()  # what stays on disk is read later
        return found


def _read(buffer: DataSource, name: str, parts: Sequence[str]) -> torch.Tensor:
    columns = _all_columns(buffer, name, parts)
    return joined(f"{buffer.location}: {name!r}", [buffer[key] for key, _, _ in columns], columns)


def _stream(buffer: DataSource, name: str, parts: Sequence[str]) -> StreamedRows:
    if len(parts) == 1 and len(buffer.specs.get(parts[0], ((), None))[0]) == 3:
        return StreamedRows(buffer, name, [(parts[0], 0, 0)], is_image=True)
    return StreamedRows(buffer, name, _all_columns(buffer, name, parts), is_image=False)


def _all_columns(buffer: DataSource, name: str, parts: Sequence[str]) -> list[Columns]:
    """All parts are checked before the first is read."""
    if isinstance(parts, str) or not parts:
        raise ValueError(f'observation {name!r}: is {parts!r}, expected a list of arrays such as ["state[:2]"]')
    return [_columns(buffer, name, part) for part in parts]


def _columns(buffer: DataSource, name: str, part: str) -> Columns:
    match = _COLUMNS.fullmatch(str(part).strip())
    where = f"{buffer.location}: {name!r}: {part!r}"
    if match is None:
        raise ValueError(f'{where} is not an array name with an optional column range, such as "state[:2]"')
    key = match["key"].strip()
    if key not in buffer.specs:
        raise ValueError(f"{where}: no array {key!r}; the data set has {buffer.keys}")
    width = int(np.prod(buffer.specs[key][0]))
    if width > MAX_COLUMNS:
        raise ValueError(
            f"{where}: array {key!r} has {width} columns (shape {buffer.specs[key][0]}), expected at most "
            f"{MAX_COLUMNS}: images are not part of the low-dimensional view"
        )
    start, stop = int(match["start"] or 0), int(match["stop"] or width)
    if not 0 <= start < stop <= width:
        raise ValueError(f"{where}: columns {start}:{stop} of array {key!r}, expected a range within 0:{width}")
    return key, start, stop
