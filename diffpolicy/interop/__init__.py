"""Checkpoints of other libraries, to ours and from ours, and files of ONNX."""

from diffpolicy.interop.importing import import_policy
from diffpolicy.interop.onnx_export import export_onnx
from diffpolicy.interop.to_lerobot import to_lerobot
from diffpolicy.interop.torch_file import TorchFile

__all__ = ["TorchFile", "export_onnx", "import_policy", "to_lerobot"]
