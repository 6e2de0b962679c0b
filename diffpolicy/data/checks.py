"""Checks on a data set before its rows reach training. Each error says what was found and what was expected."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import zarr
from zarr.core.sync import sync

# Array name -> (shape of one row, dtype).
Specs = Mapping[str, tuple[tuple[int, ...], Any]]


def check_specs(specs: Specs) -> None:
    """Raise ValueError unless every key maps to (shape of one row, numeric dtype)."""
    if not specs:
        raise ValueError('ReplayBuffer.create: no arrays given, expected e.g. {"action": ((2,), "float32")}')
    for key, spec in specs.items():
        if any(not name or name.startswith(".") for name in key.split("/")):
            raise ValueError(f"array {key!r}: a key is a plain name without a leading dot, or group/name")
        if not (isinstance(spec, tuple | list) and len(spec) == 2 and isinstance(spec[0], tuple | list)):
            raise ValueError(f"array {key!r}: spec is {spec!r}, expected (shape of one row, dtype)")
        if any(not isinstance(size, int) or size < 1 for size in spec[0]):
            raise ValueError(f"array {key!r}: shape of one row is {spec[0]!r}, expected positive integers")
        check_dtype(f"array {key!r}", np.dtype(spec[1]))


def check_dtype(name: str, dtype: np.dtype) -> None:
    """Raise ValueError unless `dtype` is boolean, integer or real: object arrays would be read by pickle."""
    if dtype.kind not in "buif":
        raise ValueError(f"{name}: dtype is {dtype}, expected a boolean, integer or floating-point type")


def check_codecs(name: str, array: zarr.Array) -> None:
    """Raise ValueError if reading `array` would unpickle data, which can run any code that the file holds."""
    check_dtype(name, np.dtype(array.dtype))
    codecs = [*array.filters, *array.compressors]
    names = [f"{type(codec).__name__} {getattr(codec, 'codec_id', '')}".strip() for codec in codecs]
    if any("pickle" in each.lower() for each in names):
        raise ValueError(f"{name}: stored with a pickle codec ({', '.join(names)}), refused because it can run code")


def check_ends(name: str, ends: np.ndarray) -> np.ndarray:
    """Return `ends` as int64 [n_episodes]; raise ValueError unless they are positive, strictly increasing integers."""
    if ends.ndim != 1 or ends.dtype.kind not in "iu":
        raise ValueError(f"{name}: is {ends.dtype} of shape {ends.shape}, expected integers of shape [n_episodes]")
    ends = ends.astype(np.int64)
    if len(ends) and ends[0] <= 0:
        raise ValueError(f"{name}: the first end is {ends[0]}, expected at least 1 (an end is one past the last row)")
    wrong = np.flatnonzero(np.diff(ends) <= 0)
    if len(wrong):
        i = int(wrong[0])
        raise ValueError(
            f"{name}: not strictly increasing, episode {i} ends at {ends[i]} and episode {i + 1} at {ends[i + 1]}"
        )
    return ends


def check_lengths(location: str, lengths: Mapping[str, int], n_steps: int, ours: bool) -> None:
    """Raise ValueError if an array is shorter than the last end or, in a data set not written by us, if lengths differ.

    A crash of our own writer may leave arrays of different lengths past the last end. In other data sets, different
    lengths mean that the rows of the arrays do not belong together.
    """
    for key, length in lengths.items():
        if length < n_steps:
            raise ValueError(f"{location}: array {key!r} has {length} rows, expected {n_steps} (the last episode end)")
    if not ours and len(set(lengths.values())) > 1:
        raise ValueError(f"{location}: arrays have different lengths {dict(lengths)}, expected {n_steps} rows in each")


def check_chunks(location: str, array: zarr.Array, n_rows: int) -> None:
    """Raise ValueError if a chunk of one of our own arrays is missing: zarr would read it as zeros."""
    tail = "/0" * (array.ndim - 1)
    names = [f"{array.path}/c/{i}{tail}" for i in range(-(-n_rows // array.chunks[0]))]

    async def find_missing() -> list[str]:
        return [name for name in names if not await array.store.exists(name)]

    missing = sync(find_missing())
    if missing:
        raise ValueError(
            f"{location}: array {array.path!r} is missing {len(missing)} of {len(names)} chunks "
            f"(first: {missing[0]}); copy or download the data set again"
        )


def check_finite(location: str, key: str, values: np.ndarray, rows: Sequence[int] | np.ndarray, ends: np.ndarray):
    """Raise ValueError if the `values` at `rows` hold NaN or inf; the message names the array, episode and step."""
    found = _first_row_not_finite(values)
    if found is None:
        return
    row = int(rows[found])
    episode = int(np.searchsorted(ends, row, side="right"))
    step = row - (int(ends[episode - 1]) if episode else 0)
    raise ValueError(
        f"{location}: array {key!r} holds NaN or inf in episode {episode} at step {step}: {values[found].tolist()}; "
        f"fix the recording or leave the episode out (drop_episodes, or copy with episodes=...)"
    )


def _first_row_not_finite(values: np.ndarray) -> int | None:
    if values.dtype.kind != "f" or np.isfinite(values).all():
        return None
    return int(np.argmin(np.isfinite(values).reshape(len(values), -1).all(1)))


def check_episode(arrays: Mapping[str, Any], specs: Specs, index: int) -> dict[str, np.ndarray]:
    """Convert an episode's arrays to numpy [length, *row] of the specified dtypes.

    Raises:
        ValueError: keys, shapes, dtypes or lengths do not match, an integer does not fit its dtype, or there are NaN or
            inf.
    """
    if set(arrays) != set(specs):
        raise ValueError(f"episode {index}: has arrays {sorted(arrays)}, expected {sorted(specs)}")
    values = {key: np.asarray(arrays[key]) for key in specs}
    for key, (row_shape, dtype) in specs.items():
        found = values[key]
        if found.ndim < 1 or found.shape[1:] != tuple(row_shape):
            raise ValueError(f"episode {index}: array {key!r} has shape {found.shape}, expected [length, *{row_shape}]")
        if found.dtype.kind not in "buif" or not np.can_cast(found.dtype, dtype, "same_kind"):
            raise ValueError(f"episode {index}: array {key!r} is {found.dtype}, expected {np.dtype(dtype)}")
        check_fits(f"episode {index}: array {key!r}", found, np.dtype(dtype))
        with np.errstate(over="ignore"):  # overflow gives inf, which is refused below
            values[key] = found.astype(dtype)
    lengths = {key: len(found) for key, found in values.items()}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise ValueError(f"episode {index}: arrays have lengths {lengths}, expected one length of at least 1")
    for key, found in values.items():
        row = _first_row_not_finite(found)
        if row is not None:
            raise ValueError(f"episode {index}: array {key!r} holds NaN or inf at step {row}: {found[row].tolist()}")
    return values


def check_fits(name: str, values: np.ndarray, dtype: np.dtype) -> None:
    """Raise ValueError if `dtype` cannot hold an integer of `values` exactly: a cast would wrap or round it."""
    if values.dtype.kind not in "iu" or dtype.kind not in "iuf" or not values.size:
        return
    if dtype.kind == "f":
        high = 2 ** (np.finfo(dtype).nmant + 1)  # from here on, not every integer has a value of its own
        low = -high
    else:
        low, high = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
    least, most = int(values.min()), int(values.max())
    if least < low or most > high:
        wrong = least if least < low else most
        raise ValueError(f"{name} holds {wrong}, expected {low} to {high}, which {dtype} can hold exactly")


def check_attributes(attributes: Mapping[str, Any] | None, index: int) -> dict[str, Any]:
    """Return `attributes` as plain JSON values; raise ValueError if JSON cannot represent them."""
    try:
        return json.loads(json.dumps(dict(attributes or {}), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"episode {index}: attributes {attributes!r} are not JSON ({error}); turn numpy numbers into int or float"
        ) from error
