"""The normalisers in a checkpoint of the published code: scale, offset and statistics of each key."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from diffpolicy.interop import statistics

ACTION = "action"


def kind(tensors: Mapping[str, Tensor], key: str, where: str) -> str:
    """What the statistics of a key were fitted as: limits or gaussian; none if by hand."""
    scale, offset = parameters(tensors, key, where)
    prefix = f"normalizer.params_dict.{key}.input_stats"
    stats = {name: tensors.get(f"{prefix}.{name}") for name in ("min", "max", "mean", "std")}
    if any(value is None or value.shape != scale.shape for value in stats.values()):
        return "none"
    low, high, mean, _ = (value * scale + offset for value in stats.values() if value is not None)
    if bool(((low + 1.0).abs() < 1e-3).logical_or((low - high).abs() < 1e-3).all()):
        return "limits"
    return "gaussian" if bool((mean.abs() < 1e-3).all()) else "none"


def settings(tensors: Mapping[str, Tensor], keys: list[str], is_clipped: bool, where: str) -> dict[str, Any]:
    """Our normaliser of each vector observation, and of the actions."""
    return {**{key: kind(tensors, key, where) for key in keys}, ACTION: statistics.action_kind(is_clipped)}


def buffers(tensors: Mapping[str, Tensor], keys: list[str], where: str) -> dict[str, Tensor]:
    """Their tensors by our names."""
    found = statistics.as_tensors("codec", statistics.linear(*parameters(tensors, ACTION, where)))
    for index, key in enumerate(sorted(keys)):
        found |= statistics.as_tensors(f"normalizers.{index}", statistics.linear(*parameters(tensors, key, where)))
    return found


def parameters(tensors: Mapping[str, Tensor], key: str, where: str) -> tuple[Tensor, Tensor]:
    """The scale and the offset of a key; raises ValueError if there are none."""
    found = [tensors.get(f"normalizer.params_dict.{key}.{name}") for name in ("scale", "offset")]
    if found[0] is None or found[1] is None:
        raise ValueError(f"{where}: the normaliser has no scale and offset of {key}")
    return found[0], found[1]
