"""Demonstrations: the zarr layout on disk, and what training sees of it."""

from diffpolicy.data.demonstrations import Demonstrations, load_demonstrations
from diffpolicy.data.replay_buffer import ReplayBuffer

__all__ = ["Demonstrations", "ReplayBuffer", "load_demonstrations"]
