"""The metadata of an exported file, JSON texts by name: everything that a program needs to act without this library."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from torch import nn

from diffpolicy._version import __version__
from diffpolicy.codecs.normalizer import Normalizer
from diffpolicy.diffusion.samplers.table import StepTable
from diffpolicy.interop.onnx_modules import row_of
from diffpolicy.policy.diffusion import DiffusionPolicy

FORMAT = 1


def metadata(policy: DiffusionPolicy, part: str, opset: int, sampler: Mapping[str, Any], box: Any) -> dict[str, str]:
    """The metadata of one file.

    Args:
        part: encoder, step or policy.
        sampler: from `described`.
        box: {low, high} in physical units, or None.
    """
    window, encoded = policy.config.window, policy.codec.encoded_shape(policy.config.window.horizon)
    content = {
        "diffpolicy": {"format": FORMAT, "version": __version__, "part": part, "opset": opset},
        "window": dataclasses.asdict(window),
        "observations": {key: _observation(policy, key) for key in sorted(policy.config.observations)},
        "action": {"dim": policy.config.action_dim, "encoded": list(encoded), **_statistics(policy.codec)},
        "limits": policy.codec.limits,
        "sampler": sampler,
        "box": box,
        "task": policy.metadata.get("task"),
        "env": policy.metadata.get("env"),
    }
    return {name: json.dumps(value, allow_nan=False) for name, value in content.items()}


def described(policy: DiffusionPolicy, table: StepTable, settings: Any) -> dict[str, Any]:
    """A sampler: its settings, the standard deviation of the first noise, and its table, one row per evaluation."""
    start = table.rows[0].sigma if table.start is None else table.start
    columns = row_of(policy)
    rows = [{**{name: getattr(row, name) for name in columns}, "c": list(row.c)} for row in table.rows]
    own = dataclasses.asdict(settings)
    return {"name": own.pop("name"), "settings": own, "start": start, "row": list(columns), "rows": rows}


def _observation(policy: DiffusionPolicy, key: str) -> dict[str, Any]:
    spec = policy.config.observations[key]
    own = {"kind": spec.kind, "shape": list(spec.shape), "dtype": str(spec.dtype).removeprefix("torch.")}
    return {**own, **_statistics(policy.normalizers.by_key().get(key))}


def _statistics(module: nn.Module | Any) -> dict[str, Any]:
    """encoded = scale * x + offset, with the features that are constant in the data; nothing for other codecs."""
    if not isinstance(module, Normalizer):
        return {}
    columns = {name: getattr(module, name).tolist() for name in ("scale", "offset", "is_constant")}
    return {"normalizer": {"name": module.kind, **columns}}
