"""Several data sets as one: their episodes one after another, and how often each is drawn from."""

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from diffpolicy.data.demonstrations import Demonstrations
from diffpolicy.data.images import Frames
from diffpolicy.data.stream import StreamedRows
from diffpolicy.data.survey import Column, merged

Rows = Tensor | StreamedRows


class ChainedRows:
    """Rows on disk of several data sets, one after another; see `StreamedRows`."""

    def __init__(self, parts: Sequence[Rows]) -> None:
        self._parts = parts
        self._ends = torch.tensor([len_of(part) for part in parts]).cumsum(0)

    @property
    def shape(self) -> tuple[int, ...]:
        """[n_steps, *row]."""
        return int(self._ends[-1]), *self._parts[0].shape[1:]

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Read `rows` (int64): [*rows.shape, *row]."""
        source, start = torch.bucketize(rows, self._ends, right=True), 0
        found: Tensor | None = None
        for index, part in enumerate(self._parts):
            if (mine := source == index).any():
                values = part[rows[mine] - start]
                found = values.new_empty(*rows.shape, *values.shape[1:]) if found is None else found
                found[mine] = values
            start = int(self._ends[index])
        assert found is not None
        return found

    def split(self, size: int, /) -> Iterator[Tensor]:
        """All rows in order, at most `size` at a time."""
        for part in self._parts:
            yield from part.split(size)


def len_of(rows: Rows | ChainedRows) -> int:
    """The number of rows."""
    return rows.shape[0]


def joined_sets(sets: Mapping[str, Demonstrations]) -> Demonstrations:
    """All episodes of the data sets {location: demonstrations}, in this order.

    Raises:
        ValueError: their actions or observations have different shapes.
    """
    (first_name, first), *others = sets.items()
    if not others:
        return first
    shapes = {name: {key: tuple(rows.shape[1:]) for key, rows in _all(one).items()} for name, one in sets.items()}
    for name, found in shapes.items():
        if found != shapes[first_name]:
            raise ValueError(f"data: {name} has rows {found}, expected those of {first_name}: {shapes[first_name]}")
    row_ends = np.cumsum([one.n_steps for one in sets.values()])
    starts = row_ends - [one.n_steps for one in sets.values()]
    return Demonstrations(
        actions=torch.cat([one.actions for one in sets.values()]),
        observations={key: _chained([one.observations[key] for one in sets.values()]) for key in first.observations},
        episode_ends=np.concatenate(
            [one.episode_ends + start for one, start in zip(sets.values(), starts, strict=True)]
        ),
        set_ends=tuple(row_ends.tolist()),
        auxiliary={key: torch.cat([one.auxiliary[key] for one in sets.values()]) for key in first.auxiliary},
        columns={key: _merged([one.columns[key] for one in sets.values()], starts.tolist()) for key in first.columns},
        frames={key: Frames.chained([one.frames[key] for one in sets.values()]) for key in first.frames},
    )


def _merged(columns: Sequence[Sequence[Column]], starts: Sequence[int]) -> list[Column]:
    return [merged(same, starts) for same in zip(*columns, strict=True)]


def _all(data: Demonstrations) -> dict[str, Rows]:
    return {"action": data.actions, **data.observations, **{f"auxiliary {k}": v for k, v in data.auxiliary.items()}}


def _chained(parts: Sequence[Rows]) -> Rows:
    tensors = [part for part in parts if isinstance(part, Tensor)]
    return torch.cat(tensors) if len(tensors) == len(parts) else ChainedRows(parts)  # type: ignore[return-value]


def check_weights(weights: Sequence[float] | None, n_sets: int) -> None:
    """Raise ValueError unless there is a usable weight for each of the data sets, or none at all."""
    if weights is None:
        return
    if len(weights) != n_sets or not all(math.isfinite(weight) and weight > 0 for weight in weights):
        raise ValueError(f"data: weights {list(weights)}, expected one number above 0 for each of {n_sets} data sets")


def weighted_order(sets: Sequence[Tensor], weights: Sequence[float], generator: torch.Generator) -> Tensor:
    """An epoch's windows [total] in random order, in numbers proportional to the weights of their data sets.

    Args:
        sets: the windows of each data set; there are `total` of them together.

    A data set with few windows and a large weight repeats all of its windows before it repeats one twice.
    """
    total = sum(map(len, sets))
    shares = torch.tensor([weight if len(one) else 0.0 for one, weight in zip(sets, weights, strict=True)]).double()
    bounds = (total * (shares.cumsum(0) / shares.sum())).round().long()
    counts = torch.diff(bounds, prepend=bounds.new_zeros(1)).tolist()
    chosen = []
    for one, number in zip(sets, counts, strict=True):
        rounds = range(-(-number // max(1, len(one))))
        chosen += (
            [torch.cat([one[torch.randperm(len(one), generator=generator)] for _ in rounds])[:number]] if number else []
        )
    return torch.cat(chosen)[torch.randperm(total, generator=generator)]
