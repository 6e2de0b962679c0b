"""The kinds of policies, by the names that settings use."""

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
    """Build an untrained policy.

    Raises:
        ValueError: the kind is unknown, or the settings do not fit together.
    """
    return lookup(POLICIES, "policy", config.name)(config)


def load_policy(folder: str | Path, device: str | torch.device = "cpu") -> Policy:
    """Load a policy of any kind from a checkpoint folder, ready to act; raises as `read_pretrained`."""
    return read_pretrained(folder, POLICIES).to(torch.device(device)).eval()
