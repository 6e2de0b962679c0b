"""Obstacles of the adversarial benchmark, with distances of their own.

Shape legend: B robots, M obstacles, V corners, N points.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


@dataclass
class Solids:
    """Convex polygons with rounded corners: vertices [B, M, V, 2], radius, speed, is_used [B, M]."""

    vertices: Array
    radius: Array
    speed: Array
    is_used: Flags

    def of(self, robots: npt.NDArray[np.intp]) -> "Solids":
        return Solids(self.vertices[robots], self.radius[robots], self.speed[robots], self.is_used[robots])

    def distance(self, points: Array) -> Array:
        """Signed distances [B, N, M] from points [B, N, 2]; inf for unused slots, below 0 inside."""
        to_edge, is_inside = self._edges(points)
        core = np.where(is_inside, -1.0, 1.0) * to_edge.min(-1)
        return np.where(self.is_used[:, None], core - self.radius[:, None], np.inf)

    def nearest(self, points: Array) -> Array:
        """The centre [B, 2] of the obstacle nearest to each robot's point [B, 2]."""
        slot = self.distance(points[:, None])[:, 0].argmin(1)
        return self.vertices[np.arange(len(points)), slot].mean(1)

    def _edges(self, points: Array) -> tuple[Array, Flags]:
        """Distances [B, N, M, V] to the edges, and whether a point is inside the polygon [B, N, M]."""
        start = self.vertices[:, None]
        along = np.roll(start, -1, axis=-2) - start
        off = points[:, :, None, None] - start
        length2 = (along**2).sum(-1)
        share = np.clip((off * along).sum(-1) / np.where(length2 > 0, length2, 1.0), 0.0, 1.0)
        to_edge = np.hypot(*np.moveaxis(off - share[..., None] * along, -1, 0))
        side = along[..., 0] * off[..., 1] - along[..., 1] * off[..., 0]
        x, y = self.vertices[..., 0], self.vertices[..., 1]
        area = (x * np.roll(y, -1, -1) - y * np.roll(x, -1, -1)).sum(-1)[:, None]
        return to_edge, (np.abs(area) > 1e-9) & ((side >= 0).all(-1) | (side <= 0).all(-1))


def random_solids(rng: np.random.Generator, robots: int, slots: int, speed: float, size: float) -> Solids:
    """Discs, walls, boxes, triangles, and shapes with repeated corners; a third of them move, if `speed` is above 0."""
    shape = (robots, slots)
    corners = np.array(
        [
            [[0.0, 0.0]] * 4,  # a disc
            [[-1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]],  # a wall
            [[-1.0, -0.5], [1.0, -0.5], [1.0, 0.5], [-1.0, 0.5]],
            [[-1.0, -1.0], [1.0, -1.0], [0.0, 1.0], [0.0, 1.0]],
            [[-1.0, 0.0], [0.0, 0.0], [1.0, 0.0], [0.0, 1e-9]],  # all but a wall, with a corner on its side
        ]
    )
    kind = rng.integers(0, len(corners), shape)
    angle, scale = rng.uniform(0, 2 * np.pi, shape), size * rng.uniform(0.2, 1.0, shape)
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    unit = corners[kind]
    local = np.stack(
        [
            unit[..., 0] * cos[..., None] - unit[..., 1] * sin[..., None],
            unit[..., 0] * sin[..., None] + unit[..., 1] * cos[..., None],
        ],
        -1,
    )
    vertices = local + rng.uniform(60.0, 450.0, (*shape, 1, 2))
    vertices = np.where(rng.random((*shape, 1, 1)) < 0.5, vertices, vertices[:, :, ::-1])  # either way round
    radius = np.where((kind == 0) | (rng.random(shape) < 0.3), size * rng.uniform(0.0, 0.8, shape), 0.0)
    moves = rng.random(shape) < 0.5
    return Solids(vertices, radius, np.where(moves, speed * rng.uniform(0.2, 1.0, shape), 0.0), rng.random(shape) < 0.8)
