"""Obstacles in the plane: convex polygons with rounded corners. A disc is the simplest one.

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

LARGEST = 1e15  # of a coordinate, radius or speed: far beyond any robot, and its square is finite in float32


@dataclass(frozen=True)
class Obstacles:
    """The obstacles of each robot at one moment. Do not modify the tensors.

    Attributes:
        vertices: [B, M, V, 2], the corners of each convex polygon in order; a disc is one point repeated.
        radius: [B, M], the distance by which each polygon is grown.
        speed: [B, M], a bound on how fast any point of the obstacle may move; 0 for a static one.
        is_used: [B, M] bool, whether the slot holds an obstacle; the contents of other slots are ignored.
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
    def is_known(self) -> Tensor:
        """[B, M], whether a slot is empty or holds a convex polygon, radius and speed at least 0, all up to LARGEST."""
        is_possible = (self._numbers.abs() <= LARGEST).all(-1) & (self.radius >= 0) & (self.speed >= 0)
        good = is_possible & _is_convex(self.vertices)
        return good | ~self.is_used

    @property
    def is_nan(self) -> Tensor:
        """[B, M], whether a slot holds an obstacle that was not measured."""
        return self._numbers.isnan().any(-1) & self.is_used

    @cached_property
    def _numbers(self) -> Tensor:
        return torch.cat([self.vertices.flatten(2), self.radius[..., None], self.speed[..., None]], dim=-1)

    @property
    def is_valid(self) -> Tensor:
        """[B], whether every slot is known."""
        return self.is_known.all(-1)

    @property
    def only_known(self) -> "Obstacles":
        """The obstacles without those that are not known. Returns self if all are."""
        is_used = self.is_used & self.is_known
        return self if bool(self.is_known.all()) else Obstacles(self.vertices, self.radius, self.speed, is_used)

    @cached_property
    def polygons(self) -> Polygons:
        """[B, M], the shapes without rounding."""
        return polygons(self.vertices)

    def _with_shapes(self, shapes: Polygons) -> "Obstacles":
        """Store `polygons` that are already known, and return self."""
        vars(self)["polygons"] = shapes
        return self

    def moves(self) -> Tensor:
        """[B, M], whether each obstacle may move."""
        return self.is_used & (self.speed > 0)

    def robots(self, index: Tensor) -> "Obstacles":
        """The obstacles of the robots `index`. Returns self if these are all robots in order."""
        if len(index) == len(self.radius) and torch.equal(index, torch.arange(len(index), device=index.device)):
            return self
        made = Obstacles(self.vertices[index], self.radius[index], self.speed[index], self.is_used[index])
        known = vars(self).get("polygons")  # usually nothing is near enough to need shapes
        return made if known is None else made._with_shapes(known[index,])

    def to(self, like: Tensor) -> "Obstacles":
        """The obstacles on the device and with the dtype of `like`."""
        vertices, radius, speed = (part.to(like) for part in (self.vertices, self.radius, self.speed))
        return Obstacles(vertices, radius, speed, self.is_used.to(like.device))._with_shapes(self.polygons.to(like))

    def equals(self, other: "Obstacles") -> bool:
        """Whether all numbers are equal to those of `other`."""
        pairs = [(getattr(self, part.name), getattr(other, part.name)) for part in fields(self)]
        return all(one.shape == another.shape and torch.equal(one, another) for one, another in pairs)

    def double(self) -> "Obstacles":
        """The obstacles in float64. Returns self if they already are."""
        if all(part.dtype == torch.float64 for part in (self.vertices, self.radius, self.speed)):
            return self
        return Obstacles(self.vertices.double(), self.radius.double(), self.speed.double(), self.is_used)

    def moved_on(self, seconds: Tensor) -> "Obstacles":
        """The regions where the obstacles may be `seconds` [B] later."""
        return Obstacles(self.vertices, self.radius + self.speed * seconds[:, None], self.speed, self.is_used)

    def check_slots(self, slots: int) -> None:
        """Raise ValueError if there are more than `slots`."""
        if self.slots > slots:
            raise ValueError(f"obstacles: {self.slots} given, expected at most {slots} (slots)")

    def is_within(self, others: "Obstacles", tolerance: float) -> Tensor:
        """[B], whether each obstacle that is known lies inside one of the others, up to `tolerance`, and is no faster.

        One that is not known is taken to be one of the others. If there are more obstacles than others, it may not be.
        """
        if not bool(self.is_known.all()):
            is_one_of_them = self.is_used.sum(-1) <= others.is_used.sum(-1)
            return self.only_known.is_within(others, tolerance) & (is_one_of_them | self.is_valid)
        if self.vertices.shape == others.vertices.shape:  # usually each is still in its own slot
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
        """The obstacles, with those in `mask` [B, 1] or [B, M] taken from `other`.

        Unless all or none are replaced, both must have the same number of slots.
        """
        if bool(mask.all()):
            return other
        if not bool(mask.any()):
            return self
        corners = max(self.vertices.shape[2], other.vertices.shape[2])
        return Obstacles(
            torch.where(
                mask[..., None, None], _with_corners(other.vertices, corners), _with_corners(self.vertices, corners)
            ),
            torch.where(mask, other.radius, self.radius),
            torch.where(mask, other.speed, self.speed),
            torch.where(mask, other.is_used, self.is_used),
        )

    def first(self, slots: int) -> "Obstacles":
        """At most `slots` slots; of robots with more obstacles than that, the first ones. Returns self if all fit."""
        if self.slots <= slots:
            return self
        order = self.is_used.logical_not().byte().argsort(dim=1, stable=True)[:, :slots]
        return Obstacles(*(getattr(self, one.name)[torch.arange(len(order))[:, None], order] for one in fields(self)))

    @cached_property
    def without_empty_slots(self) -> "Obstacles":
        """Only the slots that some robot uses. Returns self if all are used."""
        used = self.is_used.any(0)
        if bool(used.all()):
            return self
        return Obstacles(self.vertices[:, used], self.radius[:, used], self.speed[:, used], self.is_used[:, used])

    def padded(self, slots: int) -> "Obstacles":
        """A copy padded with empty slots up to `slots`.

        Raises:
            ValueError: there are more than `slots`.
        """
        self.check_slots(slots)
        missing = slots - self.slots

        def pad(part: Tensor) -> Tensor:
            return torch.cat([part, part.new_zeros(len(part), missing, *part.shape[2:])], dim=1)

        return Obstacles(pad(self.vertices), pad(self.radius), pad(self.speed), pad(self.is_used))


def no_obstacles(batch: int) -> Obstacles:
    """`Obstacles` with no slots, for `batch` robots."""
    empty = torch.zeros(batch, 0, dtype=torch.float64)
    return Obstacles(torch.zeros(batch, 0, 1, 2, dtype=torch.float64), empty, empty, empty.bool())


def disc(x: float, y: float, radius: float, speed: float = 0.0) -> Obstacles:
    """One disc, for one robot."""
    return polygon([(x, y)], radius, speed)


def box(x_low: float, y_low: float, x_high: float, y_high: float, speed: float = 0.0) -> Obstacles:
    """One axis-aligned box, for one robot."""
    if not (x_low <= x_high and y_low <= y_high):
        raise ValueError(f"box: low ({x_low}, {y_low}) must not be above high ({x_high}, {y_high})")
    return polygon([(x_low, y_low), (x_high, y_low), (x_high, y_high), (x_low, y_high)], speed=speed)


def polygon(corners: Sequence[tuple[float, float]], radius: float = 0.0, speed: float = 0.0) -> Obstacles:
    """One convex polygon with its corners in order, for one robot. Two corners make a wall, 2 * radius thick.

    Raises:
        ValueError: the corners are not convex, radius or speed is below 0, or a number is not finite.
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
    """Combine obstacles of the same robots."""
    corners = max(one.vertices.shape[2] for one in obstacles)
    return Obstacles(
        torch.cat([_with_corners(one.vertices, corners) for one in obstacles], dim=1),
        torch.cat([one.radius for one in obstacles], dim=1),
        torch.cat([one.speed for one in obstacles], dim=1),
        torch.cat([one.is_used for one in obstacles], dim=1),
    )


def _with_corners(vertices: Tensor, corners: int) -> Tensor:
    """Repeat the last corner until each polygon has that many."""
    return torch.cat([vertices, vertices[:, :, -1:].expand(-1, -1, corners - vertices.shape[2], -1)], dim=2)


def _is_convex(vertices: Tensor) -> Tensor:
    """[B, M], whether the corners, taken in order, never turn both ways (and go around once)."""
    along = vertices.roll(-1, dims=-2) - vertices
    keep = vertices[..., None, :, :] - vertices[..., :, None, :]  # from corner i to corner j
    side = along[..., :, None, 0] * keep[..., 1] - along[..., :, None, 1] * keep[..., 0]
    slack = 1e-9 * (1.0 + vertices.abs().amax((-1, -2), keepdim=True) ** 2)
    return (side >= -slack).all((-1, -2)) | (side <= slack).all((-1, -2))
