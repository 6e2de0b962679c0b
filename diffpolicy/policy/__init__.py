"""Policies: map observations to plans of actions."""

from diffpolicy.policy.analysis import PolicyAnalysis
from diffpolicy.policy.diffusion import DiffusionPolicy
from diffpolicy.policy.kinds import build_policy, load_policy
from diffpolicy.policy.protocol import Policy
from diffpolicy.policy.sampling import ActionChunk
from diffpolicy.policy.settings import PolicyConfig, WindowConfig

__all__ = [
    "ActionChunk",
    "DiffusionPolicy",
    "Policy",
    "PolicyAnalysis",
    "PolicyConfig",
    "WindowConfig",
    "build_policy",
    "load_policy",
]
