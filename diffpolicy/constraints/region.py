"""A region of any shape to stay out of, along whole segments of the path.

A margin of points sees where a path is at the end of each row only: a robot that moves further in a row than a region
is wide may pass through it unseen.

Shape legend: B batch, R rows (segments), P + 1 points of each, M copies of the rows, A action.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from diffpolicy.constraints.constraint import Prox, Quantity, Scene
from diffpolicy.constraints.vectors import length

PIECES = 16  # of a segment
Distance = Callable[[Tensor], Tensor]
"""Maps points [..., A] to [...], their distances from a region, below 0 inside. Differentiable by torch."""


class Region:
    """The whole path stays at least `clearance` away from a region, of which only the distance is known.

    Args:
        distance: must not change by more than the point moves. So a piece of a segment is no nearer than half of the
            sum of the distances of its ends, less its length.
        clearance: in units of position.
        acts_on: which path must stay clear: the "motion" of the robot, or its "commands".
        inset: an extra distance that the projection keeps. The certificate does not require it.

    Raises:
        ValueError: a number is below 0 or not finite.
    """

    def __init__(
        self,
        distance: Distance,
        clearance: float = 0.0,
        acts_on: Literal["commands", "motion"] = "motion",
        inset: float = 0.0,
    ) -> None:
        if not all(0.0 <= number < float("inf") for number in (clearance, inset)):
            raise ValueError(f"region: clearance {clearance} and inset {inset} must be at least 0")
        self.quantity = Quantity(acts_on, segments=True)
        self._distance, self._clearance, self._inset = distance, clearance, inset

    def prox(self, reference: Tensor, scene: Scene) -> Prox:
        normal, offset = self._half_spaces(reference)
        normal, offset = normal[:, None, :, None], offset[:, None, :, None]

        def project(y: Tensor) -> Tensor:
            short = (offset - torch.linalg.vecdot(y, normal)).clamp(min=0.0)
            return y + short[..., None] * normal

        return project

    def margin(self, y: Tensor, scene: Scene) -> Tensor:
        found = self._distance(_points(y))  # [B, R, P + 1]
        piece = length(y[..., 1, :] - y[..., 0, :]) / PIECES
        nearest = 0.5 * (found[..., 1:] + found[..., :-1] - piece[..., None])
        return nearest.amin(-1) - self._clearance

    def _half_spaces(self, reference: Tensor) -> tuple[Tensor, Tensor]:
        """For each segment the half-space, n . y >= c, that clears its nearest point: n [B, R, A], c [B, R]."""
        with torch.inference_mode(False), torch.enable_grad():
            points = _points(reference).detach().clone().requires_grad_()
            found = self._distance(points)
            (slope,) = torch.autograd.grad(found.sum(), points)
        found, nearest = found.detach().min(-1)
        index = nearest[..., None, None].expand(*nearest.shape, 1, points.shape[-1])
        at, slope = (torch.gather(part.detach(), 2, index)[:, :, 0] for part in (points, slope))
        size = length(slope)[..., None]
        normal = torch.where(size > 0, slope / size.clamp(min=1e-30), 0.0)  # no direction leads away from a ridge
        offset = torch.linalg.vecdot(normal, at) - found + self._clearance + self._inset
        return normal, torch.where(size[..., 0] > 0, offset, 0.0)


def _points(y: Tensor) -> Tensor:
    """[B, R, P + 1, A], points along segments [B, R, 2, A]."""
    share = torch.linspace(0.0, 1.0, PIECES + 1, dtype=y.dtype, device=y.device)[:, None]
    return y[..., :1, :] + share * (y[..., 1:, :] - y[..., :1, :])
