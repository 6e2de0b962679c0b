"""Saving and loading of policies of any kind as checkpoint folders."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from diffpolicy.policy import migration
from diffpolicy.policy.protocol import Policy
from diffpolicy.policy.settings import PolicyConfig, policy_config
from diffpolicy.system import checkpoint
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
        ValueError: it is damaged or of another kind, or tensors are missing, unknown or of the wrong shape.
    """
    path = checkpoint.resolve(find_checkpoint(folder))
    content = checkpoint.read_config(path)
    version = content["format_version"]
    content = migration.migrated(content)
    config = policy_config(content["policy"])
    policy = lookup(kinds, f"checkpoint: {path}: policy", config.name)(config)
    policy.metadata = {key: value for key, value in content.items() if key not in NOT_METADATA}
    tensors = migration.migrated_tensors(version, checkpoint.read_tensors(path, "model"))
    checkpoint.check_tensors(f"checkpoint: {path}", tensors, policy.acting_state())
    policy.load_state_dict(tensors, strict=False)
    policy.check_fitted()
    return policy
