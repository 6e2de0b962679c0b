"""Clearance from static and moving obstacles along whole segments, and a limit on how fast they are approached.

After t seconds, an obstacle that moves at up to `speed` is somewhere inside its shape grown by speed * t.

Shape legend: B batch, R rows (segments), M obstacle slots, A = 2.
"""

from typing import Literal

import torch
from torch import Tensor

from diffpolicy.constraints.constraint import Prox, Quantity, Scene
from diffpolicy.constraints.planar.separation import separate


class KeepOut:
    """A disc of radius `robot_radius` stays at least `clearance` away from every obstacle, along its whole path.

    Args:
        robot_radius, clearance: in units of position.
        acts_on: which path must stay clear: the "motion" of the robot, or its "commands".
        inset: an extra distance that the projection keeps. The certificate does not require it.

    Raises:
        ValueError: a number is below 0 or not finite.
    """

    def __init__(
        self,
        robot_radius: float,
        clearance: float = 0.0,
        acts_on: Literal["commands", "motion"] = "motion",
        inset: float = 0.0,
    ) -> None:
        if not all(0.0 <= number < float("inf") for number in (robot_radius, clearance, inset)):
            raise ValueError(
                f"keep-out: robot_radius {robot_radius}, clearance {clearance}, inset {inset} must be at least 0"
            )
        self.quantity = Quantity(acts_on, segments=True)
        self.distance = robot_radius + clearance
        self._inset = inset

    def prox(self, reference: Tensor, scene: Scene) -> Prox:
        normal, offset = half_spaces(reference, scene, self.distance + self._inset)
        normal, offset = normal[..., None, :], offset[..., None]

        def project(y: Tensor) -> Tensor:
            short = (offset - torch.linalg.vecdot(y, normal)).clamp(min=0.0)
            return y + short[..., None] * normal

        return project

    def margin(self, y: Tensor, scene: Scene) -> Tensor:
        return (_clearance(y, scene, scene.radius, exact_below=self.distance + scene.error) - self.distance).amin(1)


class BarrierDecrease:
    """The distance h to each obstacle falls by at most the fraction `rate` per row: h_next >= (1 - rate) h.

    This is a discrete control barrier (Agrawal and Sreenath 2017). h is measured from `robot_radius + clearance`. For a
    moving obstacle, h is at each moment the distance to everywhere that it may be by then.

    Raises:
        ValueError: the rate is outside (0, 1], or a distance is below 0 or not finite.
    """

    def __init__(
        self,
        rate: float,
        robot_radius: float,
        clearance: float = 0.0,
        acts_on: Literal["commands", "motion"] = "commands",
        inset: float = 0.0,
    ) -> None:
        if not 0.0 < rate <= 1.0 or not all(
            0.0 <= number < float("inf") for number in (robot_radius, clearance, inset)
        ):
            raise ValueError(
                f"barrier: rate {rate} must be in (0, 1], robot_radius {robot_radius}, clearance {clearance} and inset "
                f"{inset} at least 0"
            )
        self.quantity = Quantity(acts_on, segments=True)
        self.rate = rate
        self.distance = robot_radius + clearance
        self._inset = inset

    def prox(self, reference: Tensor, scene: Scene) -> Prox:
        normal, offset = half_spaces(reference, scene, self.distance + self._inset)
        kept = 1.0 - self.rate
        pair = torch.stack([-kept * normal, normal], dim=-2)  # for the segment's start and end, [B, M, R, 2, A]
        used = scene.obstacles.is_used[..., None]
        growth = torch.where(used, scene.radius - scene.radius_before, 0.0).to(normal)
        need, length2 = self.rate * offset + kept * growth, 1.0 + kept * kept

        def project(y: Tensor) -> Tensor:
            short = (need - (y * pair).sum((-1, -2))).clamp(min=0.0) / length2
            return y + short[..., None, None] * pair

        return project

    def margin(self, y: Tensor, scene: Scene) -> Tensor:
        start, end = (
            _clearance(point.unsqueeze(-2).expand(-1, -1, 2, -1), scene, radius, torch.inf) - self.distance
            for point, radius in zip(y.unbind(-2), (scene.radius_before, scene.radius), strict=True)
        )
        decrease = (end - (1.0 - self.rate) * start) / (2.0 - self.rate)  # changes by no more than the rows do
        return torch.where(end == torch.inf, torch.inf, decrease).amin(1)


def half_spaces(reference: Tensor, scene: Scene, distance: float) -> tuple[Tensor, Tensor]:
    """One half-space per obstacle and segment, where n . y >= c means clear: n [B, M, R, 2], c [B, M, R].

    It holds both ends of a segment, so the whole segment is clear. Unused slots give 0 . y >= 0.
    """
    used = scene.obstacles.is_used[..., None]
    found = separate(reference[:, None], scene.obstacles.polygons.to(reference)[..., None])
    reach = found.reach + (scene.radius.to(reference) + distance)
    return torch.where(used[..., None], found.normal, 0.0), torch.where(used, reach, 0.0)


def _clearance(ends: Tensor, scene: Scene, radius: Tensor, exact_below: Tensor | float) -> Tensor:
    """Distance [B, M, R] of segments [B, R, 2, 2] to each obstacle. Above `exact_below` it may be a lower bound.

    The obstacles are rounded by `radius` [B, M, R].
    """
    obstacles = scene.obstacles
    if obstacles.slots == 0:
        return ends.new_full((len(ends), 1, ends.shape[1]), torch.inf)
    radius, counts = radius.to(ends), obstacles.is_used[..., None]
    if scene.at_rest is not None:
        counts = counts & ~(scene.at_rest[:, None] & (obstacles.speed[..., None] > 0))
    distance = torch.where(counts, _bound(ends, obstacles.vertices.to(ends)) - radius, torch.inf)
    near = counts & ~(distance > exact_below)  # also NaN, and overlapping boxes, which decide nothing
    robot, slot, row = near.nonzero(as_tuple=True)
    if len(robot):
        exact = separate(ends[robot, row], scene.obstacles.polygons.to(ends)[robot, slot]).distance
        distance[robot, slot, row] = exact - radius[robot, slot, row]
    return distance


def _bound(ends: Tensor, vertices: Tensor) -> Tensor:
    """A cheap lower bound [B, M, R] of the distance: between the boxes around segment and polygon [B, M, V, 2]."""
    ends, vertices = ends.movedim(-1, 0), vertices.movedim(-1, 0)  # [2, B, R, 2] and [2, B, M, V]
    low, high = ends.amin(-1)[:, :, None], ends.amax(-1)[:, :, None]
    gap = torch.maximum(vertices.amin(-1)[..., None] - high, low - vertices.amax(-1)[..., None])
    return torch.hypot(*gap.clamp_(min=0.0))  # squares could overflow to an infinite distance
