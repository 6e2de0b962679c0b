"""Checkpoints of other libraries: to ours and from ours."""

from diffpolicy.interop.importing import import_policy
from diffpolicy.interop.to_lerobot import to_lerobot
from diffpolicy.interop.torch_file import TorchFile

__all__ = ["TorchFile", "import_policy", "to_lerobot"]
