"""Limits on vectors: boxes, norm balls and polytopes for positions, velocities, accelerations or jerks.

`inset` shrinks the set that the projection aims for. A projection that has not fully converged then still passes, and
there is room for the errors that a certificate subtracts. The margin, and so the certificate, uses the limit itself.

Shape legend: B batch, R rows, A action, F faces.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from diffpolicy.constraints.constant import Constant
from diffpolicy.constraints.constraint import Prox, Quantity, Scene
from diffpolicy.constraints.vectors import length


class Box:
    """low <= y <= high on every axis: a workspace, joint limits, or per-axis limits of a higher order.

    Args:
        low, high: the limits, one number per axis or one for all axes.
        quantity: what they bound.
        inset: how far inside the limits the projection aims, on each side.

    Raises:
        ValueError: low is above high, a limit is NaN, or `inset` leaves no room.
    """

    def __init__(
        self, low: Sequence[float] | float, high: Sequence[float] | float, quantity: Quantity, inset: float = 0.0
    ) -> None:
        self.quantity = quantity
        self.low, self.high = (torch.as_tensor(limit, dtype=torch.float64) for limit in (low, high))
        if not bool((self.low + 2 * inset <= self.high).all()) or not inset >= 0:
            raise ValueError(
                f"box: low {self.low.tolist()} must not be above high {self.high.tolist()}, inset {inset} on each side"
            )
        self._low, self._high = Constant(self.low + inset), Constant(self.high - inset)

    def prox(self, reference: Tensor, scene: Scene) -> Prox:
        low, high = self._low.like(reference), self._high.like(reference)
        return lambda y: y.clamp(low, high)

    def margin(self, y: Tensor, scene: Scene) -> Tensor:
        return torch.minimum(y - self.low.to(y), self.high.to(y) - y).amin(-1)


class NormLimit:
    """|y| <= limit in the Euclidean norm over the axes: a limit on speed, acceleration or jerk.

    Raises:
        ValueError: the limit is not above the inset, or not finite.
    """

    def __init__(self, limit: float, quantity: Quantity, inset: float = 0.0) -> None:
        if not 0.0 <= inset < limit < float("inf"):
            raise ValueError(f"limit: {limit} must be finite and above 0 and the inset {inset}")
        self.quantity = quantity
        self.limit = limit
        self._radius = limit - inset

    def prox(self, reference: Tensor, scene: Scene) -> Prox:
        def ball(y: Tensor) -> Tensor:
            return y / (length(y) / self._radius).clamp(min=1.0)[..., None]  # rows inside stay bit-equal

        return ball

    def margin(self, y: Tensor, scene: Scene) -> Tensor:
        return self.limit - length(y)


class Polytope:
    """normals . y <= offsets, face by face; a single face is a half-space.

    `prox` is exact for a single face, and for faces that meet at right angles. Otherwise it projects repeatedly onto
    the face that is violated most. The projector treats each of the `faces` as a constraint of its own, which is exact
    for every polytope.

    Args:
        normals: [F, A], the outward normals, of any length.
        offsets: [F].

    Raises:
        ValueError: the shapes do not match, a normal is zero, a number is not finite, or `inset` is negative.
    """

    def __init__(
        self, normals: Sequence[Sequence[float]], offsets: Sequence[float], quantity: Quantity, inset: float = 0.0
    ) -> None:
        raw = torch.as_tensor(normals, dtype=torch.float64)
        offset = torch.as_tensor(offsets, dtype=torch.float64)
        if raw.ndim != 2 or offset.shape != raw.shape[:1]:
            raise ValueError(
                f"polytope: normals {list(raw.shape)} and offsets {list(offset.shape)}, expected [F, A], [F]"
            )
        size = length(raw)
        if not bool(raw.isfinite().all() and offset.isfinite().all() and (size > 0).all()) or not inset >= 0:
            raise ValueError("polytope: normals must be finite and not zero, offsets finite, inset at least 0")
        self.quantity = quantity
        self.normals, self.offsets = raw / size[:, None], offset / size
        self._inset = inset
        self._within = Constant(self.normals), Constant(self.offsets - inset)

    def faces(self) -> "list[Polytope]":
        """Each face as a half-space of its own."""
        pairs = zip(self.normals.tolist(), self.offsets.tolist(), strict=True)
        return [Polytope([normal], [offset], self.quantity, self._inset) for normal, offset in pairs]

    def prox(self, reference: Tensor, scene: Scene) -> Prox:
        normals, offsets = (part.like(reference) for part in self._within)

        def project(y: Tensor) -> Tensor:
            for _ in range(len(normals)):
                excess, face = (torch.matmul(y, normals.mT) - offsets).max(-1)
                y = y - excess.clamp(min=0.0)[..., None] * normals[face]
            return y

        return project

    def margin(self, y: Tensor, scene: Scene) -> Tensor:
        return (self.offsets.to(y) - torch.matmul(y, self.normals.to(y).mT)).amin(-1)
