"""Obstacles in the plane: convex polygons with rounded corners, of which a disc is the simplest.

Shape legend: B batch of robots, M slots for obstacles, V vertices.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from diffpolicy.constraints.planar.separation import Polygons, polygons, separation
from diffpolicy.constraints.vectors import length


@dataclass(frozen=True)
class Obstacles:
    """What each robot has to keep clear of at one moment; its tensors are not changed any more.

    Attributes:
        vertices: [B, M, V, 2], corners of a convex polygon in order; a disc is one point repeated.
        radius: [B, M], by which the polygon is grown.
        speed: [B, M], a bound on how fast any of its points may move; 0 is a static one.
        is_used: [B, M] bool; other slots are empty, whatever they hold.
    """

    vertices: Tensor
    radius: Tensor
    speed: Tensor
    is_used: Tensor

    def __post_init__(self) -> None:
        slots = self.radius.shape
        found = [list(part.shape) for part in (self.vertices, self.speed, self.is_used)]
        if len(slots) != 2 or found != [[*slots, self.vertices.shape[-2], 2], list(slots), list(slots)]:
            raise ValueError(
                f"obstacles: vertices, speed, is_used have shapes {found}, expected [B, M, V, 2], [B, M], [B, M] "
                f"with the [B, M] of radius {list(slots)}"
            )
        if self.is_used.dtype != torch.bool:
            raise ValueError(f"obstacles: is_used is {self.is_used.dtype}, expected bool")

    @property
    def slots(self) -> int:
        return self.radius.shape[1]

    @cached_property
    def is_valid(self) -> Tensor:
        """[B]: every used slot holds finite numbers, and radius and speed of at least 0."""
        numbers = torch.cat([self.vertices.flatten(2), self.radius[..., None], self.speed[..., None]], dim=-1)
        good = numbers.isfinite().all(-1) & (self.radius >= 0) & (self.speed >= 0) & _is_convex(self.vertices)
        return (good | ~self.is_used).all(-1)

    @cached_property
    def polygons(self) -> Polygons:
        """The shapes, not rounded, [B, M]."""
        return polygons(self.vertices)

    def _with_shapes(self, shapes: Polygons) -> "Obstacles":
        """With `polygons` that are known already."""
        vars(self)["polygons"] = shapes
        return self

    def moves(self) -> Tensor:
        """[B, M], which of them may move."""
        return self.is_used & (self.speed > 0)

    def robots(self, index: Tensor) -> "Obstacles":
        """Of the robots `index`; the same object for all of them in order."""
        if len(index) == len(self.radius) and torch.equal(index, torch.arange(len(index), device=index.device)):
            return self
        made = Obstacles(self.vertices[index], self.radius[index], self.speed[index], self.is_used[index])
        known = vars(self).get("polygons")  # most often nothing is so near that shapes are asked for
        return made if known is None else made._with_shapes(known[index,])

    def to(self, like: Tensor) -> "Obstacles":
        """On the device and of the type of `like`."""
        vertices, radius, speed = (part.to(like) for part in (self.vertices, self.radius, self.speed))
        return Obstacles(vertices, radius, speed, self.is_used.to(like.device))._with_shapes(self.polygons.to(like))

    def equals(self, other: "Obstacles") -> bool:
        """Whether all numbers are the same."""
        pairs = [(getattr(self, part.name), getattr(other, part.name)) for part in fields(self)]
        return all(one.shape == another.shape and torch.equal(one, another) for one, another in pairs)

    def double(self) -> "Obstacles":
        """In float64; the same object if it is already."""
        if all(part.dtype == torch.float64 for part in (self.vertices, self.radius, self.speed)):
            return self
        return Obstacles(self.vertices.double(), self.radius.double(), self.speed.double(), self.is_used)

    def moved_on(self, seconds: Tensor) -> "Obstacles":
        """Where they may be [B] seconds later."""
        return Obstacles(self.vertices, self.radius + self.speed * seconds[:, None], self.speed, self.is_used)

    def check_slots(self, slots: int) -> None:
        """ValueError where there are more than `slots`."""
        if self.slots > slots:
            raise ValueError(f"obstacles: {self.slots} given, expected at most {slots} (slots)")

    def is_within(self, others: "Obstacles", tolerance: float) -> Tensor:
        """[B]: each of them lies inside one of the others, up to `tolerance`, and is no faster."""
        if self.vertices.shape == others.vertices.shape:  # most often each of them is still in its own place
            off = length(self.vertices - others.vertices).amax(-1)
            stays = (off <= others.radius - self.radius + tolerance) & (self.speed <= others.speed) & others.is_used
            if bool((stays | ~self.is_used).all()):
                return torch.ones(len(stays), dtype=torch.bool)
        points = self.vertices[:, :, None, :, None].expand(-1, -1, -1, -1, 2, -1)  # [B, M, 1, V, 2, 2]
        outside, _ = separation(points, others.vertices[:, None, :, None])  # [B, M, M', V]
        room = others.radius[:, None] - self.radius[..., None] + tolerance
        is_inside = (outside.amax(-1) <= room) & (self.speed[..., None] <= others.speed[:, None])
        return ((is_inside & others.is_used[:, None]).any(-1) | ~self.is_used).all(-1)

    def replaced(self, mask: Tensor, other: "Obstacles") -> "Obstacles":
        """With those of the robots `mask` [B] replaced; both have as many slots, unless it is all."""
        if bool(mask.all()):
            return other
        if not bool(mask.any()):
            return self
        corners = max(self.vertices.shape[2], other.vertices.shape[2])
        mask = mask[:, None]
        return Obstacles(
            torch.where(
                mask[..., None, None], _with_corners(other.vertices, corners), _with_corners(self.vertices, corners)
            ),
            torch.where(mask, other.radius, self.radius),
            torch.where(mask, other.speed, self.speed),
            torch.where(mask, other.is_used, self.is_used),
        )

    @cached_property
    def without_empty_slots(self) -> "Obstacles":
        """Only the slots that some robot uses; the same object for all of them."""
        used = self.is_used.any(0)
        if bool(used.all()):
            return self
        return Obstacles(self.vertices[:, used], self.radius[:, used], self.speed[:, used], self.is_used[:, used])

    def padded(self, slots: int) -> "Obstacles":
        """A copy with empty slots up to `slots`.

        Raises:
            ValueError: there are more.
        """
        self.check_slots(slots)
        missing = slots - self.slots

        def pad(part: Tensor) -> Tensor:
            return torch.cat([part, part.new_zeros(len(part), missing, *part.shape[2:])], dim=1)

        return Obstacles(pad(self.vertices), pad(self.radius), pad(self.speed), pad(self.is_used))


def no_obstacles(batch: int) -> Obstacles:
    """None for any of `batch` robots."""
    empty = torch.zeros(batch, 0, dtype=torch.float64)
    return Obstacles(torch.zeros(batch, 0, 1, 2, dtype=torch.float64), empty, empty, empty.bool())


def disc(x: float, y: float, radius: float, speed: float = 0.0) -> Obstacles:
    """One disc for one robot."""
    return polygon([(x, y)], radius, speed)


def box(x_low: float, y_low: float, x_high: float, y_high: float, speed: float = 0.0) -> Obstacles:
    """One box along the axes for one robot."""
    if not (x_low <= x_high and y_low <= y_high):
        raise ValueError(f"box: low ({x_low}, {y_low}) must not be above high ({x_high}, {y_high})")
    return polygon([(x_low, y_low), (x_high, y_low), (x_high, y_high), (x_low, y_high)], speed=speed)


def polygon(corners: Sequence[tuple[float, float]], radius: float = 0.0, speed: float = 0.0) -> Obstacles:
    """One convex polygon with its corners in order, for one robot; two corners are a wall of twice the radius.

    Raises:
        ValueError: corners that are not convex, a radius or speed below 0, numbers that are not finite.
    """
    vertices = torch.tensor(np.asarray(corners, dtype=np.float64).reshape(1, 1, -1, 2))
    numbers = torch.tensor([[radius]], dtype=torch.float64), torch.tensor([[speed]], dtype=torch.float64)
    made = Obstacles(vertices, *numbers, torch.ones(1, 1, dtype=torch.bool))
    if vertices.numel() == 0 or not bool(made.is_valid.all()):
        raise ValueError(
            f"obstacle: corners {list(corners)}, radius {radius}, speed {speed}; expected a convex polygon with "
            "corners in order, finite, radius and speed at least 0"
        )
    return made


def together(obstacles: Sequence[Obstacles]) -> Obstacles:
    """All of these for the same robots."""
    corners = max(one.vertices.shape[2] for one in obstacles)
    return Obstacles(
        torch.cat([_with_corners(one.vertices, corners) for one in obstacles], dim=1),
        torch.cat([one.radius for one in obstacles], dim=1),
        torch.cat([one.speed for one in obstacles], dim=1),
        torch.cat([one.is_used for one in obstacles], dim=1),
    )


def _with_corners(vertices: Tensor, corners: int) -> Tensor:
    """The last corner repeated up to that many."""
    return torch.cat([vertices, vertices[:, :, -1:].expand(-1, -1, corners - vertices.shape[2], -1)], dim=2)


def _is_convex(vertices: Tensor) -> Tensor:
    """[B, M]: the corners, taken in order, never turn both ways (and go round once)."""
    along = vertices.roll(-1, dims=-2) - vertices
    keep = vertices[..., None, :, :] - vertices[..., :, None, :]  # from corner i to corner j
    side = along[..., :, None, 0] * keep[..., 1] - along[..., :, None, 1] * keep[..., 0]
    slack = 1e-9 * (1.0 + vertices.abs().amax((-1, -2), keepdim=True) ** 2)
    return (side >= -slack).all((-1, -2)) | (side <= slack).all((-1, -2))
