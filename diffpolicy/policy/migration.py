"""Migration of checkpoints from earlier formats to the current one.

Format 1 had one flat dataclass for all schedules, weightings and parameterizations, and another for all samplers.
Up to format 2, normalisers did not know which features were constant.
Format 4 has further settings, whose defaults are what earlier formats did: how an observation's images are delivered.
Format 5 has the noise of the diffusion; earlier ones were trained with white noise.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor

from diffpolicy.policy.objective_choices import DENOISING_CHOICES
from diffpolicy.policy.sampler_choices import SAMPLERS
from diffpolicy.system.schema import read, read_settings
from diffpolicy.system.tables import Entry, lookup

OF_ALL_SCHEDULES = ("num_levels", "zero_terminal_snr", "condition_dropout")


@dataclass
class FlatDiffusion:
    """The settings of all schedules, parameterizations and weightings in format 1; None where none was given."""

    schedule: str | None = None
    num_levels: int | None = None
    beta_start: float | None = None
    beta_end: float | None = None
    zero_terminal_snr: bool | None = None
    sigma_min: float | None = None
    sigma_max: float | None = None
    sigma_data: float | None = None
    parameterization: str | None = None
    weighting: str | None = None
    level_distribution: str | None = None
    condition_dropout: float | None = None


@dataclass
class FlatSampler:
    """The settings of all samplers in format 1; None where none was given."""

    name: str
    steps: int | None = None
    spacing: str | None = None
    eta: float | None = None
    variance: str | None = None
    churn: float | None = None
    langevin_steps: int | None = None
    langevin_rate: float | None = None
    scheduler: str | None = None
    scheduler_options: Any = None
    guidance: Any = None


def migrated(content: Mapping[str, Any], where: str = "checkpoint") -> dict[str, Any]:
    """Convert the content of a config.json in any readable format to the current format.

    Raises:
        ValueError: it is not of the format that it names; `where` begins the message.
    """
    policy = read(Mapping[str, Any], content.get("policy"), f"{where}: policy")
    if content["format_version"] > 1:
        return {**content, "policy": policy}
    changed: dict[str, Any] = {"policy": {**policy, "diffusion": _diffusion(policy.get("diffusion"), where)}}
    if "training" in content:
        changed["training"] = _run(read(Mapping[str, Any], content["training"], f"{where}: training"), where)
    return {**content, **changed}


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


def _run(training: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Convert the settings of a training run."""
    sampler = asdict(read_settings(FlatSampler, training.get("sampler"), f"{where}: training: sampler"))
    return {
        **training,
        "diffusion": _diffusion(training.get("diffusion"), f"{where}: training"),
        "sampler": _own(SAMPLERS, "sampler", sampler),
    }


def _diffusion(content: Any, where: str) -> dict[str, Any]:
    flat = asdict(read_settings(FlatDiffusion, content, f"{where}: diffusion"))
    given = {name: value for name, value in flat.items() if value is not None}
    kept = {name: given[name] for name in OF_ALL_SCHEDULES if name in given}
    choices = {
        kind: _own(table, kind, {**given, "name": given[kind]})
        for kind, table in DENOISING_CHOICES.items()
        if kind in given
    }
    return {"name": "denoising", **kept, **choices}


def _own(table: Mapping[str, Entry[Any]], kind: str, flat: Mapping[str, Any]) -> dict[str, Any]:
    """Pick the settings of one choice from the flat settings of all, where None meant the choice's own default."""
    known = {field.name for field in fields(lookup(table, kind, flat["name"]).settings)}
    return {name: value for name, value in flat.items() if name in known and value is not None}
