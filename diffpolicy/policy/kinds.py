"""The kinds of policies, by their names in settings."""

from collections.abc import Mapping
from pathlib import Path

import torch

from diffpolicy.policy.diffusion import DiffusionPolicy
from diffpolicy.policy.pretrained import read_pretrained
from diffpolicy.policy.protocol import Policy
from diffpolicy.policy.settings import PolicyConfig
from diffpolicy.system.tables import lookup

POLICIES: Mapping[str, type] = {"diffusion": DiffusionPolicy}


def build_policy(config: PolicyConfig) -> Policy:
    """A policy that is not trained yet.

    Raises:
        ValueError: an unknown kind, or settings that do not fit each other.
    """
    return lookup(POLICIES, "policy", config.name)(config)


def load_policy(folder: str | Path, device: str | torch.device = "cpu") -> Policy:
    """The policy of a checkpoint folder, whatever its kind, ready to act; raises as `read_pretrained`."""
    return read_pretrained(folder, POLICIES).to(torch.device(device)).eval()
