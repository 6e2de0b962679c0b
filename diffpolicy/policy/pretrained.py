"""Saving and loading of policies of any kind as checkpoint folders."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from diffpolicy.policy import migration
from diffpolicy.policy.protocol import Policy
from diffpolicy.policy.settings import PolicyConfig, check_metadata, policy_config
from diffpolicy.system import checkpoint, tensor_file
from diffpolicy.system.plain import difference, shown_text
from diffpolicy.system.shipped import find_checkpoint
from diffpolicy.system.tables import lookup

Kind = TypeVar("Kind", bound=Policy)
NOT_METADATA = ("policy", "sha256", "format_version")


def write_pretrained(policy: Policy, folder: str | Path) -> None:
    """Write config.json and model.safetensors into a new folder; raises FileExistsError if it exists."""
    checkpoint.write(Path(folder), checkpoint_config(policy), {"model": policy.acting_state()})


def checkpoint_config(policy: Policy) -> dict[str, Any]:
    """The policy's content of config.json: its settings and metadata."""
    return {"policy": dataclasses.asdict(policy.config), **policy.metadata}


def read_pretrained(folder: str | Path, kinds: Mapping[str, Callable[[PolicyConfig], Kind]]) -> Kind:
    """Load and verify the policy in a checkpoint folder, on disk or shipped, or a link to one, on the CPU.

    Args:
        kinds: the kinds of policies to accept: name in settings -> class.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: it is damaged or of another kind, a setting is unknown, missing, of the wrong type or out of range,
            or tensors are missing, unknown, not finite, or of the wrong shape or dtype.
    """
    return checkpoint.load(find_checkpoint(folder), lambda saved: _read(saved, kinds))


def _read(saved: checkpoint.Saved, kinds: Mapping[str, Callable[[PolicyConfig], Kind]]) -> Kind:
    where = f"checkpoint: {saved.folder}"
    content = migration.migrated(saved.config, where)
    config = policy_config(content["policy"], f"{where}: policy")
    make = lookup(kinds, f"{where}: policy", config.name)
    metadata = {key: value for key, value in content.items() if key not in NOT_METADATA}
    check_metadata(metadata, where)
    with torch.device("meta"):  # without memory or time: the file shows whether the settings are what was saved
        expected = tensor_file.specs(_built(make, config, where).acting_state())
    tensors = saved.tensors("model", expected, migration.migrated_tensors)
    policy = _built(make, config, where)
    as_read = dataclasses.asdict(policy.config)
    if saved.version == checkpoint.FORMAT_VERSION and (told := difference(content["policy"], as_read)):
        raise ValueError(f"{where}: policy: {told}")
    policy.metadata = metadata
    policy.load_state_dict(tensors, strict=False)
    policy.check_fitted()
    tensor_file.check_finite(tensors, where)
    return policy


def _built(make: Callable[[PolicyConfig], Kind], config: PolicyConfig, where: str) -> Kind:
    try:
        return make(config)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    except (RuntimeError, OverflowError, MemoryError) as error:  # sizes that torch cannot count
        raise ValueError(f"{where}: its settings describe no policy: {shown_text(str(error))}") from error
