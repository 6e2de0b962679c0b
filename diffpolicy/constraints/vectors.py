"""Vectors in any number of dimensions."""

from torch import Tensor


def length(vectors: Tensor) -> Tensor:
    """Euclidean lengths [...] of vectors [..., A]; on a CPU many times faster than a norm along a short last axis."""
    return vectors.square().sum(-1).sqrt()
