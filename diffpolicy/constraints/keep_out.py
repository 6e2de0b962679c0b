"""Keeping clear of obstacles, over whole segments, static or moving; and approaching them no faster than allowed.

An obstacle that moves at up to `speed` is, t seconds on, somewhere inside its shape grown by speed * t.

Shape legend: B batch, R rows (segments), M obstacle slots, A = 2.
"""

from typing import Literal

import torch
from torch import Tensor

from diffpolicy.constraints.constraint import Prox, Rows, Scene
from diffpolicy.constraints.obstacles import Obstacles
from diffpolicy.constraints.separation import separation


class KeepOut:
    """The disc of radius `robot_radius` stays at least `clearance` away from every obstacle, all along its way.

    Args:
        robot_radius, clearance: in units of position.
        acts_on: "motion" of the robot, or its "commands".
        inset: a further distance that the projection, not the certificate, keeps.

    Raises:
        ValueError: a number below 0 or not finite.
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
        self.rows = Rows(acts_on, segments=True)
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
        return (_clearance(y, scene, exact_below=2.0 * self.distance) - self.distance).amin(-1)


class BarrierDecrease:
    """The distance h to each obstacle falls by at most the share `rate` a row: h_next >= (1 - rate) h (a discrete
    control barrier, Agrawal and Sreenath 2017), with h counted from `robot_radius + clearance`.

    Raises:
        ValueError: a rate outside (0, 1], or a distance below 0 or not finite.
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
        self.rows = Rows(acts_on, segments=True)
        self.rate = rate
        self.distance = robot_radius + clearance
        self._inset = inset

    def prox(self, reference: Tensor, scene: Scene) -> Prox:
        normal, offset = half_spaces(reference, scene, self.distance + self._inset)
        kept = 1.0 - self.rate
        weights = normal.new_tensor([-kept, 1.0])  # of the segment's start and end
        pair = weights[:, None] * normal[..., None, :]  # [B, M, R, 2, A]
        need, length2 = self.rate * offset, 1.0 + kept * kept

        def project(y: Tensor) -> Tensor:
            short = (need - (y * pair).sum((-1, -2))).clamp(min=0.0) / length2
            return y + short[..., None, None] * pair

        return project

    def margin(self, y: Tensor, scene: Scene) -> Tensor:
        start, end = (_clearance(point.unsqueeze(-2), scene, torch.inf) - self.distance for point in y.unbind(-2))
        decrease = (end - (1.0 - self.rate) * start) / (2.0 - self.rate)  # changes by no more than the rows do
        return torch.where(end == torch.inf, torch.inf, decrease).amin(-1)


def half_spaces(reference: Tensor, scene: Scene, distance: float) -> tuple[Tensor, Tensor]:
    """Per obstacle and segment, n [B, M, R, 2] and c [B, M, R]: where n . y >= c the robot is clear of it.

    One half-space serves both ends of a segment, so that all of the segment is clear. Unused slots give 0 . y >= 0.
    """
    obstacles = scene.obstacles
    vertices = obstacles.vertices.to(reference)[:, :, None]  # [B, M, 1, V, 2]
    _, normal = separation(reference[:, None], vertices)
    used = obstacles.is_used[..., None, None]
    normal = torch.where(used, normal, 0.0)
    grown = _grown(obstacles, scene.time_s).to(reference)
    farthest = (normal[..., None, :] * vertices).sum(-1).amax(-1)
    return normal, torch.where(used[..., 0], farthest + grown + distance, 0.0)


def _grown(obstacles: Obstacles, time_s: Tensor) -> Tensor:
    """Radius of the rounded obstacles at these times, [B, M, R]."""
    return obstacles.radius[..., None] + obstacles.speed[..., None] * time_s.to(obstacles.speed)


def _clearance(ends: Tensor, scene: Scene, exact_below: float) -> Tensor:
    """Distance [B, R, M] of segments [B, R, 1 or 2, 2] to each obstacle; a lower bound where that is `exact_below`."""
    obstacles = scene.obstacles
    if obstacles.slots == 0:
        return ends.new_full((*ends.shape[:2], 1), torch.inf)
    ends = ends if ends.shape[-2] == 2 else ends.expand(-1, -1, 2, -1)
    vertices = obstacles.vertices.to(ends)
    grown = _grown(obstacles, scene.time_s).mT.to(ends)  # [B, R, M]
    counts = obstacles.is_used[:, None].expand(grown.shape)
    if scene.at_rest is not None:
        counts = counts & ~(scene.at_rest[..., None] & (obstacles.speed[:, None] > 0))
    distance = torch.where(counts, _bound(ends, vertices) - grown, torch.inf)
    near = counts & ~(distance >= exact_below)  # NaN too
    robot, row, slot = near.nonzero(as_tuple=True)
    exact, _ = separation(ends[robot, row], vertices[robot, slot])
    distance[robot, row, slot] = exact - grown[robot, row, slot]
    return distance


def _bound(ends: Tensor, vertices: Tensor) -> Tensor:
    """A cheap lower bound [B, R, M] of the distance, less a slack: circles round segment and polygon."""
    start, end = ends.unbind(-2)
    half = torch.linalg.vector_norm(end - start, dim=-1) / 2
    center = vertices.mean(-2)
    reach = torch.linalg.vector_norm(vertices - center[..., None, :], dim=-1).amax(-1)
    between = torch.cdist((start + end) / 2, center, compute_mode="donot_use_mm_for_euclid_dist")
    return between - half[..., None] - reach[:, None]
