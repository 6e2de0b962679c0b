"""Migration of checkpoints from earlier formats to the current one.

Format 1 had one flat dataclass for all schedules, weightings and parameterizations, and another for all samplers.
Up to format 2, normalisers did not know which features were constant.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from diffpolicy.policy.build import DENOISING_CHOICES, SAMPLERS
from diffpolicy.system.tables import Entry, lookup

OF_ALL_SCHEDULES = ("num_levels", "zero_terminal_snr", "condition_dropout")


def migrated(content: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the content of a config.json in any readable format to the current format."""
    if content["format_version"] > 1:
        return dict(content)
    policy = {**content["policy"], "diffusion": _diffusion(content["policy"]["diffusion"])}
    changed: dict[str, Any] = {"policy": policy}
    if "training" in content:
        changed["training"] = migrated_run(content["training"])
    return {**content, **changed}


def migrated_run(training: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the settings of a training run from format 1."""
    return {
        **training,
        "diffusion": _diffusion(training["diffusion"]),
        "sampler": _own(SAMPLERS, "sampler", training["sampler"]),
    }


def migrated_tensors(version: int, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of a policy or a training state of format `version` to their current names."""
    if version == 1:
        tensors = {_renamed(name): value for name, value in tensors.items()}
    return {**_constants(tensors), **tensors} if version < 3 else dict(tensors)


def _constants(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What normalisers have in addition since format 3; False decodes a feature as before."""
    fitted = [name.removesuffix("scale") for name in tensors if name.endswith(".scale")]
    return {
        f"{name}is_constant": torch.zeros_like(tensors[f"{name}scale"], dtype=torch.bool)
        for name in fitted
        if f"{name}offset" in tensors
    }


def _renamed(name: str) -> str:
    """Rename a tensor of the model or, with the prefix "model.", of the training state."""
    if name in ("null_condition", "model.null_condition"):
        return f"{name}.vector"
    return name.replace("action_normalizer.", "codec.")


def _diffusion(flat: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: flat[name] for name in OF_ALL_SCHEDULES if name in flat}
    choices = {
        kind: _own(table, kind, {**flat, "name": flat[kind]})
        for kind, table in DENOISING_CHOICES.items()
        if kind in flat
    }
    return {"name": "denoising", **kept, **choices}


def _own(table: Mapping[str, Entry[Any]], kind: str, flat: Mapping[str, Any]) -> dict[str, Any]:
    """Pick the settings of one choice from the flat settings of all, where None meant the choice's own default."""
    known = {field.name for field in fields(lookup(table, kind, flat["name"]).settings)}
    return {name: value for name, value in flat.items() if name in known and value is not None}
