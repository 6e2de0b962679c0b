"""Diffusion policies for robot action generation."""

from diffpolicy._version import __version__
from diffpolicy.control.controller import PolicyController
from diffpolicy.policy.diffusion import DiffusionPolicy
from diffpolicy.policy.sampling import ActionChunk
from diffpolicy.policy.settings import PolicyConfig

__all__ = ["ActionChunk", "DiffusionPolicy", "PolicyConfig", "PolicyController", "__version__"]
