"""The training view of a data set: actions and observations, assembled from its arrays as the task specifies."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from diffpolicy.data.images import Frames, image_key, read_images
from diffpolicy.data.replay_buffer import ReplayBuffer
from diffpolicy.data.source import DataSource, FirstEpisodes
from diffpolicy.data.stream import Columns, StreamedRows, column_names, flat, joined
from diffpolicy.data.survey import Column, survey
from diffpolicy.system.pixels import PixelFormat

# An array with more flattened columns than this cannot be a vector.
MAX_COLUMNS = 1024
ACTION = "action"  # the key of the actions among the columns
_COLUMNS = re.compile(r"(?P<key>[^\[\]]+)(\[(?P<start>\d*):(?P<stop>\d*)\])?")


@dataclass(frozen=True)
class Demonstrations:
    """Actions and observations of all episodes. Row i of each is one step, whose observation precedes its action."""

    actions: torch.Tensor  # float32 [n_steps, action_dim]
    # name -> float32 [n_steps, dim] or, of images, uint8 [n_steps, height, width, 3]; or rows left on disk
    observations: Mapping[str, torch.Tensor | StreamedRows]
    episode_ends: np.ndarray  # int64 [n_episodes], one past each episode's last row
    set_ends: tuple[int, ...] = ()  # one past the last row of each data set, if there are several
    auxiliary: Mapping[str, torch.Tensor] = field(default_factory=dict)  # array -> float32 [n_steps, dim]
    columns: Mapping[str, Sequence[Column]] = field(default_factory=dict)  # "action" or name -> what was stored
    frames: Mapping[str, Frames] = field(default_factory=dict)  # name of images -> what they show

    @property
    def n_episodes(self) -> int:
        """Number of episodes."""
        return len(self.episode_ends)

    @property
    def n_steps(self) -> int:
        """Number of steps in all episodes together."""
        return len(self.actions)


def load_demonstrations(
    location: str | os.PathLike[str],
    observations: Mapping[str, Sequence[str]],
    action: str = "action",
    stream: Sequence[str] = (),
    open_source: Callable[[str], DataSource] = ReplayBuffer.open,
    auxiliary: Sequence[str] = (),
    images: Mapping[str, PixelFormat] | None = None,
    episodes: int | None = None,
) -> Demonstrations:
    """Read a data set as a task describes it, e.g. observations={"keypoints": ["keypoint", "state[:2]"]}.

    Args:
        observations: name -> parts, which are joined by columns. A part is the name of an array, which is flattened to
            [n_steps, columns], with an optional range of columns.
        action: the array of actions, with an optional range of columns.
        stream: observations to leave on disk.
        open_source: opens the data set at a location.
        auxiliary: arrays, each with an optional range of columns, that are no observations but taught to the encoder.
        images: the observations that are images, each one array [n_steps, height, width, 3] or as its format says.
        episodes: use the first ones only, at most as many as these.

    Raises:
        ValueError: an array or name is unknown, a range is empty, an image is named as a vector or a vector as an
            image, values are NaN or inf or not those of its format, or there are no episodes.
    """
    with contextlib.ExitStack() as opened:
        source = open_source(str(location))
        opened.callback(source.close)
        buffer = source if episodes is None or episodes >= source.n_episodes else FirstEpisodes(source, episodes)
        found = _assembled(buffer, observations, action, stream, auxiliary, images or {})
        if stream:
            opened.pop_all()  # keep the source open: streamed rows are read later
        return found


def _assembled(
    buffer: DataSource,
    observations: Mapping[str, Sequence[str]],
    action: str,
    stream: Sequence[str],
    auxiliary: Sequence[str],
    images: Mapping[str, PixelFormat],
) -> Demonstrations:
    if not buffer.n_episodes:
        raise ValueError(f"{buffer.location}: holds no episodes; record some with append_episode")
    if not observations:
        raise ValueError(f'{buffer.location}: no observations named, expected e.g. {{"state": ["state"]}}')
    for setting, names in (("stream", stream), ("images", images)):
        if unknown := sorted(set(names) - set(observations)):
            raise ValueError(f"{buffer.location}: {setting} names {unknown}, expected some of {sorted(observations)}")
    actions, action_columns = _read(buffer, ACTION, [action])
    pictures = {name: _pictures(buffer, name, observations[name], images[name], name in stream) for name in images}
    vectors = {
        name: _stream(buffer, name, parts) if name in stream else _read(buffer, name, parts)
        for name, parts in observations.items()
        if name not in images
    }
    both = {**pictures, **vectors}
    return Demonstrations(
        actions=actions,
        observations={name: both[name][0] for name in observations},
        episode_ends=buffer.episode_ends,
        auxiliary={part: _read(buffer, part, [part])[0] for part in auxiliary},
        columns={ACTION: action_columns, **{name: columns for name, (_, columns) in vectors.items()}},
        frames={name: frames for name, (_, frames) in pictures.items()},
    )


def _pictures(
    buffer: DataSource, name: str, parts: Sequence[str], pixels: PixelFormat, is_streamed: bool
) -> tuple[torch.Tensor | StreamedRows, Frames]:
    key = image_key(buffer, name, parts, pixels)
    if not is_streamed:
        return read_images(buffer, name, key, pixels)
    rows = StreamedRows(buffer, name, [(key, 0, 0)], pixels)
    return rows, rows.frames()


def _read(buffer: DataSource, name: str, parts: Sequence[str]) -> tuple[torch.Tensor, list[Column]]:
    columns = _all_columns(buffer, name, parts)
    values = [buffer[key] for key, _, _ in columns]
    rows = joined(f"{buffer.location}: {name!r}", values, columns)
    return rows, survey(column_names(columns), [flat(values, columns)], len(rows))


def _stream(buffer: DataSource, name: str, parts: Sequence[str]) -> tuple[StreamedRows, list[Column]]:
    rows = StreamedRows(buffer, name, _all_columns(buffer, name, parts))
    return rows, rows.surveyed()


def _all_columns(buffer: DataSource, name: str, parts: Sequence[str]) -> list[Columns]:
    """Resolve the columns of all parts, so that every part is checked before the first one is read."""
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
    shape, dtype = buffer.specs[key]
    width = int(np.prod(shape))
    if width > MAX_COLUMNS or (len(shape) == 3 and np.dtype(dtype) == np.uint8):
        raise ValueError(
            f"{where}: array {key!r} has {width} columns (shape {tuple(shape)}), expected a vector of at most "
            f"{MAX_COLUMNS} numbers; if it holds images: 'data.images={{{name}: {{}}}}'"
        )
    start, stop = int(match["start"] or 0), int(match["stop"] or width)
    if not 0 <= start < stop <= width:
        raise ValueError(f"{where}: columns {start}:{stop} of array {key!r}, expected a range within 0:{width}")
    return key, start, stop
