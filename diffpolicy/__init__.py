"""Diffusion policies for robot action generation."""

import importlib
from typing import TYPE_CHECKING, Any

from diffpolicy._version import __version__

if TYPE_CHECKING:
    from diffpolicy.control.controller import PolicyController
    from diffpolicy.policy.diffusion import DiffusionPolicy
    from diffpolicy.policy.sampling import ActionChunk
    from diffpolicy.policy.settings import PolicyConfig

__all__ = ["ActionChunk", "DiffusionPolicy", "PolicyConfig", "PolicyController", "__version__"]
_MODULES = {
    "ActionChunk": "diffpolicy.policy.sampling",
    "DiffusionPolicy": "diffpolicy.policy.diffusion",
    "PolicyConfig": "diffpolicy.policy.settings",
    "PolicyController": "diffpolicy.control.controller",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: the commands choose how threads wait before torch is imported."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
