"""Distance between segments and convex polygons in the plane.

Along any unit vector n, min over the segment of n . p minus max over the polygon of n . v is a lower bound of their
distance, and the largest over all n is the distance itself. So a missing candidate can only make the answer smaller:
what is called clear is clear.

Shape legend: ... pairs of a segment and a polygon; V vertices; C directions. Inside, x and y and what a pair has
many of come first, [2, C, ...]: then all pairs are worked on in one piece of memory.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

TINY = 1e-12  # a vector no longer than this has no direction


@dataclass(frozen=True)
class Polygons:
    """Convex polygons as `separate` wants them.

    Attributes:
        vertices, normals: [2, V, ...]; the outward unit normals of the edges.
    """

    vertices: Tensor
    normals: Tensor

    def to(self, like: Tensor) -> "Polygons":
        """On the device and of the type of `like`."""
        return Polygons(self.vertices.to(like), self.normals.to(like))

    def __getitem__(self, index: Any) -> "Polygons":
        """Of the pairs `index`."""
        return Polygons(self.vertices[:, :, *index], self.normals[:, :, *index])


@dataclass(frozen=True)
class Separation:
    """The direction that tells segments and polygons apart best.

    Attributes:
        distance: signed [...], below 0 the depth of the overlap.
        normal: unit vectors [..., 2] from polygon to segment.
        reach: of the polygon along the normal, [...].
    """

    distance: Tensor
    normal: Tensor
    reach: Tensor


def polygons(vertices: Tensor) -> Polygons:
    """Of vertices [..., V, 2] in order, either way round; repeated vertices count once."""
    vertices = vertices.movedim((-1, -2), (0, 1)).contiguous()
    along = vertices.roll(-1, dims=1) - vertices
    normal = _unit(torch.stack([along[1], -along[0]]))
    inward = (normal * (vertices.mean(1, keepdim=True) - vertices)).sum(0)
    is_inward = inward > 1e-9 * vertices.abs().amax((0, 1))
    return Polygons(vertices, torch.where(is_inward, -normal, normal))


def separate(ends: Tensor, others: Polygons) -> Separation:
    """Of segments [..., 2, 2]; equal ends are a point."""
    ends = ends.movedim((-1, -2), (0, 1)).contiguous()
    normals = _candidates(ends, others)  # [2, C, ...]
    nearest = (normals[:, :, None] * ends[:, None]).sum(0).amin(1)
    farthest = (normals[:, :, None] * others.vertices[:, None]).sum(0).amax(1)
    distance, index = (nearest - farthest).max(0, keepdim=True)
    normal = torch.gather(normals, 1, index.expand(2, *index.shape)).squeeze(1)
    return Separation(distance[0], normal.movedim(0, -1), torch.gather(farthest, 0, index)[0])


def separation(ends: Tensor, vertices: Tensor) -> tuple[Tensor, Tensor]:
    """Distance [...] and normal [..., 2] of segments [..., 2, 2] and polygons [..., V, 2], of as many dimensions."""
    found = separate(ends, polygons(vertices))
    return found.distance, found.normal


def _candidates(ends: Tensor, others: Polygons) -> Tensor:
    """Edge normals, vertex to segment, and the segment's normals, [2, C, ...]."""
    start, along = ends[:, :1], ends[:, 1:] - ends[:, :1]
    off = others.vertices - start
    fraction = (off * along).sum(0) / along.square().sum(0).clamp(min=1e-30)
    to_segment = fraction.clamp(0.0, 1.0) * along - off
    shape = to_segment.shape[2:]
    across = torch.stack([along[1], -along[0]]).expand(2, 1, *shape)
    free = _unit(torch.cat([to_segment, across], dim=1))
    return torch.cat([others.normals.expand(-1, -1, *shape), free, -free[:, -1:]], dim=1)


def _unit(vector: Tensor) -> Tensor:
    """Vectors [2, ...] over their lengths; along x where these are 0 or overflow: any direction serves."""
    length2 = vector.square().sum(0)
    sideways = torch.eye(2, 1, dtype=vector.dtype, device=vector.device).view(2, *(1,) * length2.ndim)
    has_length = (length2 > TINY**2) & length2.isfinite()
    return torch.where(has_length, vector * length2.clamp(min=TINY**2).rsqrt(), sideways)
