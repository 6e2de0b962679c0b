"""The training view of a data set: float32 actions and observations, put together from its arrays as the task says."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from diffpolicy.data.replay_buffer import ReplayBuffer

# More flattened columns than this in one array is taken for an image, which the low-dimensional view does not hold.
MAX_COLUMNS = 1024
_COLUMNS = re.compile(r"(?P<key>[^\[\]]+)(\[(?P<start>\d*):(?P<stop>\d*)\])?")


@dataclass(frozen=True)
class Demonstrations:
    """Row i of every tensor is one step; the observation of a row precedes its action."""

    actions: torch.Tensor  # float32 [n_steps, action_dim]
    observations: dict[str, torch.Tensor]  # name -> float32 [n_steps, dim]
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
) -> Demonstrations:
    """Read a zarr data set as a task describes it, e.g. observations={"keypoints": ["keypoint", "state[:2]"]}.

    Each observation joins its parts column-wise; a part is the name of an array, flattened to [n_steps, columns], with
    an optional range of columns. Raises ValueError on unknown arrays, empty ranges, images, NaN or inf, no episodes.
    """
    buffer = ReplayBuffer.open(location)
    try:
        if not buffer.n_episodes:
            raise ValueError(f"{location}: holds no episodes; record some with append_episode")
        if not observations:
            raise ValueError(f'{location}: no observations named, expected e.g. {{"state": ["state"]}}')
        return Demonstrations(
            actions=_join(buffer, "action", [action]),
            observations={name: _join(buffer, name, parts) for name, parts in observations.items()},
            episode_ends=buffer.episode_ends,
        )
    finally:
        buffer.close()


def _join(buffer: ReplayBuffer, name: str, parts: Sequence[str]) -> torch.Tensor:
    if isinstance(parts, str) or not parts:
        raise ValueError(f'observation {name!r}: is {parts!r}, expected a list of arrays such as ["state[:2]"]')
    # All parts are checked before the first is read.
    columns = [_columns(buffer, name, part) for part in parts]
    values = [buffer[key].reshape(buffer.n_steps, -1)[:, start:stop] for key, start, stop in columns]
    with np.errstate(over="ignore"):
        joined = np.concatenate(values, axis=1).astype(np.float32)
    if not np.isfinite(joined).all():
        raise ValueError(f"{buffer.location}: {name!r} ({list(parts)}) holds numbers beyond float32's 3.4e38")
    return torch.from_numpy(joined)


def _columns(buffer: ReplayBuffer, name: str, part: str) -> tuple[str, int, int]:
    """`part` as (array, first column, one past the last column)."""
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
