"""Demonstrations: the zarr data sets on disk, and the tensors that training reads from them."""

from diffpolicy.data.demonstrations import Demonstrations, load_demonstrations
from diffpolicy.data.replay_buffer import ReplayBuffer

__all__ = ["Demonstrations", "ReplayBuffer", "load_demonstrations"]
