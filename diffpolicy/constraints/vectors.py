"""Euclidean length of vectors."""

from torch import Tensor


def length(vectors: Tensor) -> Tensor:
    """Lengths [...] of vectors [..., A]. On a CPU this is many times faster than a norm along a short last axis."""
    return vectors.square().sum(-1).sqrt()
