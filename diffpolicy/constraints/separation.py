"""Distance between segments and convex polygons in the plane.

Along any unit vector n, min over the segment of n . p minus max over the polygon of n . v is a lower bound of their
distance, and the largest over all n is the distance itself. So a missing candidate can only make the answer smaller:
what is called clear is clear.

Shape legend: ... pairs of a segment and a polygon; V vertices.
"""

import torch
from torch import Tensor


def separation(ends: Tensor, vertices: Tensor) -> tuple[Tensor, Tensor]:
    """Signed distance [...] (below 0: depth of the overlap) and the unit vector [..., 2] from polygon to segment.

    Args:
        ends: of the segments [..., 2, 2]; equal ends are a point.
        vertices: of the polygons in order, either way round, [..., V, 2]; repeated vertices count once.
    """
    normals = _candidates(ends, vertices)  # [..., C, 2]
    nearest = torch.matmul(normals, ends.mT).amin(-1)
    farthest = torch.matmul(normals, vertices.mT).amax(-1)
    gap = torch.where((normals != 0.0).any(-1), nearest - farthest, -torch.inf)
    best, index = gap.max(-1)
    chosen = torch.gather(normals, -2, index[..., None, None].expand(*index.shape, 1, 2)).squeeze(-2)
    return best, chosen


def _candidates(ends: Tensor, vertices: Tensor) -> Tensor:
    """Edge normals, vertex to segment, and the segment's normals; zero where there is no direction."""
    edges = _normal(vertices.roll(-1, dims=-2) - vertices)
    inward = (edges * (vertices.mean(-2, keepdim=True) - vertices)).sum(-1, keepdim=True)
    edges = torch.where(inward > 1e-9 * vertices.abs().amax((-1, -2), keepdim=True), -edges, edges)
    start, along = ends[..., :1, :], ends[..., 1:, :] - ends[..., :1, :]
    length2 = (along * along).sum(-1, keepdim=True)
    fraction = ((vertices - start) * along).sum(-1, keepdim=True) / length2.clamp(min=1e-30)
    to_segment = _unit(start + fraction.clamp(0.0, 1.0) * along - vertices)
    across = _normal(along)
    across = torch.where((across != 0.0).any(-1, keepdim=True), across, across.new_tensor([1.0, 0.0]))  # of a point
    parts = [part.expand(*to_segment.shape[:-2], *part.shape[-2:]) for part in (edges, to_segment, across, -across)]
    return torch.cat(parts, dim=-2)


def _normal(along: Tensor) -> Tensor:
    return _unit(torch.stack([along[..., 1], -along[..., 0]], dim=-1))


def _unit(vector: Tensor) -> Tensor:
    length = torch.linalg.vector_norm(vector, dim=-1, keepdim=True)
    return torch.where(length > 1e-12, vector / length.clamp(min=1e-12), 0.0)
