"""Diffusion policies for robot action generation."""

from diffpolicy._version import __version__
from diffpolicy.config import PolicyConfig, SamplerConfig
from diffpolicy.controller import PolicyController
from diffpolicy.policy import DiffusionPolicy
from diffpolicy.sampling import ActionChunk

__all__ = ["ActionChunk", "DiffusionPolicy", "PolicyConfig", "PolicyController", "SamplerConfig", "__version__"]
