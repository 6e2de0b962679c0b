"""Policies as checkpoint folders, whatever kind of policy they are."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from diffpolicy.policy import migration
from diffpolicy.policy.protocol import Policy
from diffpolicy.policy.settings import PolicyConfig, policy_config
from diffpolicy.system import checkpoint
from diffpolicy.system.tables import lookup

Kind = TypeVar("Kind", bound=Policy)
NOT_METADATA = ("policy", "sha256", "format_version")


def write_pretrained(policy: Policy, folder: str | Path) -> None:
    """Write config.json and model.safetensors into a new folder."""
    checkpoint.write(Path(folder), checkpoint_config(policy), {"model": policy.acting_state()})


def checkpoint_config(policy: Policy) -> dict[str, Any]:
    """What config.json holds."""
    return {"policy": dataclasses.asdict(policy.config), **policy.metadata}


def read_pretrained(folder: str | Path, kinds: Mapping[str, Callable[[PolicyConfig], Kind]]) -> Kind:
    """The policy of a checkpoint folder, or of a link to one, verified; on the CPU.

    Args:
        kinds: of policies that are expected, by their names in settings.

    Raises:
        FileNotFoundError: no checkpoint there.
        ValueError: damaged, of another kind, or tensors missing, unknown or of the wrong shape.
    """
    path = checkpoint.resolve(Path(folder).expanduser())
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
