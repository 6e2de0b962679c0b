"""Distance between segments and convex polygons in the plane.

For any unit vector n, the minimum of n . p over the segment minus the maximum of n . v over the polygon is a lower
bound of their distance. The largest such bound over all n is the distance itself. A missing candidate can therefore
only make the answer smaller: what is called clear is clear.

Shape legend: ... pairs of a segment and a polygon; V vertices; C directions. Internally, x and y and then V or C come
first, [2, C, ...], so that each operation runs over contiguous memory for all pairs.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

TINY = 1e-12  # a vector no longer than this has no direction


@dataclass(frozen=True)
class Polygons:
    """Convex polygons in the layout that `separate` needs.

    Attributes:
        vertices: [2, V, ...], the corners in order.
        normals: [2, V, ...], the outward unit normals of the edges.
    """

    vertices: Tensor
    normals: Tensor

    def to(self, like: Tensor) -> "Polygons":
        """The polygons on the device and with the dtype of `like`."""
        return Polygons(self.vertices.to(like), self.normals.to(like))

    def __getitem__(self, index: Any) -> "Polygons":
        """The polygons of the pairs `index`."""
        return Polygons(self.vertices[:, :, *index], self.normals[:, :, *index])


@dataclass(frozen=True)
class Separation:
    """The direction that separates segments and polygons best.

    Attributes:
        distance: [...], signed; below 0 it is minus the depth of the overlap.
        normal: [..., 2], unit vectors from polygon to segment.
        reach: [...], how far the polygon extends along the normal.
    """

    distance: Tensor
    normal: Tensor
    reach: Tensor


def polygons(vertices: Tensor) -> Polygons:
    """Prepare polygons from vertices [..., V, 2] in order, clockwise or not. Repeated vertices count once."""
    vertices = vertices.movedim((-1, -2), (0, 1)).contiguous()
    along = vertices.roll(-1, dims=1) - vertices
    normal = _unit(torch.stack([along[1], -along[0]]))
    inward = (normal * (vertices.mean(1, keepdim=True) - vertices)).sum(0)
    is_inward = inward > 1e-9 * vertices.abs().amax((0, 1))
    return Polygons(vertices, torch.where(is_inward, -normal, normal))


def separate(ends: Tensor, others: Polygons) -> Separation:
    """Separate segments [..., 2, 2] from polygons. Equal ends make a point."""
    ends = ends.movedim((-1, -2), (0, 1)).contiguous()
    normals = _candidates(ends, others)  # [2, C, ...]
    nearest = (normals[:, :, None] * ends[:, None]).sum(0).amin(1)
    farthest = (normals[:, :, None] * others.vertices[:, None]).sum(0).amax(1)
    distance, index = (nearest - farthest).max(0, keepdim=True)
    normal = torch.gather(normals, 1, index.expand(2, *index.shape)).squeeze(1)
    return Separation(distance[0], normal.movedim(0, -1), torch.gather(farthest, 0, index)[0])


def separation(ends: Tensor, vertices: Tensor) -> tuple[Tensor, Tensor]:
    """Distance [...] and normal [..., 2] of segments [..., 2, 2] and polygons [..., V, 2] of the same rank."""
    found = separate(ends, polygons(vertices))
    return found.distance, found.normal


def _candidates(ends: Tensor, others: Polygons) -> Tensor:
    """[2, C, ...], the candidate directions: edge normals, vertex to segment, and the segment's normals."""
    start, along = ends[:, :1], ends[:, 1:] - ends[:, :1]
    off = others.vertices - start
    fraction = (off * along).sum(0) / along.square().sum(0).clamp(min=1e-30)
    to_segment = fraction.clamp(0.0, 1.0) * along - off
    shape = to_segment.shape[2:]
    across = torch.stack([along[1], -along[0]]).expand(2, 1, *shape)
    free = _unit(torch.cat([to_segment, across], dim=1))
    return torch.cat([others.normals.expand(-1, -1, *shape), free, -free[:, -1:]], dim=1)


def _unit(vector: Tensor) -> Tensor:
    """Normalise vectors [2, ...]. If the length is 0 or overflows, any direction will do: these point along x."""
    length2 = vector.square().sum(0)
    sideways = torch.eye(2, 1, dtype=vector.dtype, device=vector.device).view(2, *(1,) * length2.ndim)
    has_length = (length2 > TINY**2) & length2.isfinite()
    return torch.where(has_length, vector * length2.clamp(min=TINY**2).rsqrt(), sideways)
