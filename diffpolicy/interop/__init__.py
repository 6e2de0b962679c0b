"""Checkpoints of other libraries: to ours and from ours."""
