"""Applies a user's constraint at every reverse step: decodes the clean estimate to physical units and encodes it again.

Shape legend: B batch, H horizon, A action.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from diffpolicy.codecs.codec import Codec
from diffpolicy.diffusion.reverse import Denoised
from diffpolicy.diffusion.samplers.table import Row
from diffpolicy.policy.clip import clip, identity

Constrain = Callable[[Tensor, Row], Tensor]
"""(plan [B, H, A] in physical units, row) -> the constrained plan, same shape; it may work in place."""


@runtime_checkable
class Projection(Protocol):
    """A constraint on plans that is told at which step it is called."""

    def project(self, plan: Tensor, row: Row, step: int) -> Tensor:
        """The constrained plan, same shape. Returning `plan` itself keeps the estimate bit for bit.

        Args:
            plan: [B, H, A] in physical units; must not be changed in place.
            row: the sampler's row.
            step: 0, 1, ... in the loop; the number of the sampler's rows for the plan that is returned.
        """
        ...


@runtime_checkable
class Replayable(Projection, Protocol):
    """A `Projection` whose calls in the loop are a function of tensors, so that they can be recorded and replayed."""

    def key(self) -> Hashable:
        """Everything that the calls depend on besides `tensors`."""
        ...

    def tensors(self) -> list[Tensor]:
        """The tensors that the calls read."""
        ...

    def twin(self, tensors: Sequence[Tensor]) -> Self:
        """A fresh copy, without calls so far, that reads `tensors` instead."""
        ...

    def left(self) -> list[Tensor]:
        """The state that the calls so far have left, as tensors."""
        ...

    def take(self, left: Sequence[Tensor]) -> None:
        """Restore the state after a replay from what `left` of the recorded copy returned."""
        ...


class PlanProjection:
    """Clips to the data's limits, then applies the user's constraint, so that the constraint has the last word.

    With a codec that is not invertible, encoding a projected plan would change it, also where the constraint does not
    act. The constraint then acts once, on the decoded plan that is returned.

    Args:
        codec: the codec of the actions.
        present: index of the present; waypoints before it are left unchanged.
        constrain: the user's constraint, if any.
    """

    def __init__(self, codec: Codec, present: int, constrain: Constrain | Projection | None) -> None:
        self._codec = codec
        self._has_waypoints = codec.metric is not None  # otherwise no part of the encoding is only the past
        self._to_data = identity if codec.limits is None else clip(*codec.limits)
        self._present = present
        self._demand = _as_projection(constrain)
        self._replayable = self._demand if isinstance(self._demand, Replayable) else None

    def project(self, clean: Tensor, row: Row, step: int) -> Tensor:
        """Project an encoded clean estimate [B, *encoded_shape] at a reverse step; same shape."""
        clean = self._to_data(clean, row, step)
        if self._demand is None or not self._codec.is_invertible:
            return clean
        plan = self._codec.decode(clean)
        projected = self._projected(self._demand, plan, row, step)
        if projected is plan:
            return clean
        if self._has_waypoints:
            return self._after_past(clean, self._codec.encode(projected))
        return self._codec.encode(self._after_past(plan, projected))

    def finish(self, denoised: Denoised, row: Row, step: int) -> Tensor:
        """Decode and project the final plan, [B, H, A] in physical units.

        Args:
            row: the sampler's last row.
            step: the number of its rows.

        Raises:
            ValueError: the plan or an estimate in the loop has NaN or infinite values.
        """
        plan = self._codec.decode(denoised.clean)
        if self._demand is not None:
            projected = self._projected(self._demand, plan, row, step)
            plan = plan if projected is plan else self._after_past(plan, projected)
        if not bool(denoised.is_finite.all() & plan.isfinite().all()):
            raise ValueError("policy: the plan has NaN or infinite values; the weights or the constraint are broken")
        return plan

    @property
    def is_replayable(self) -> bool:
        """Whether the calls of `project` are a function of tensors; the methods below then implement `Replayable`."""
        return self._demand is None or self._replayable is not None

    def key(self) -> Hashable:
        return self._replayable.key() if self._replayable else None

    def tensors(self) -> list[Tensor]:
        return self._replayable.tensors() if self._replayable else []

    def twin(self, tensors: Sequence[Tensor]) -> "PlanProjection":
        demand = self._replayable.twin(tensors) if self._replayable else None
        return PlanProjection(self._codec, self._present, demand)

    def left(self) -> list[Tensor]:
        return self._replayable.left() if self._replayable else []

    def take(self, left: Sequence[Tensor]) -> None:
        if self._replayable:
            self._replayable.take(left)

    def _projected(self, demand: Projection, plan: Tensor, row: Row, step: int) -> Tensor:
        projected = demand.project(plan, row, step)
        if projected is None:  # pyright: ignore[reportUnnecessaryComparison]: a user's function may return None
            raise ValueError("constraint: returned None, expected the plan")
        if projected.shape != plan.shape:
            raise ValueError(f"constraint: returned shape {list(projected.shape)}, expected {list(plan.shape)}")
        return projected

    def _after_past(self, before: Tensor, after: Tensor) -> Tensor:
        return torch.cat([before[:, : self._present], after[:, self._present :]], dim=1)


def _as_projection(constrain: Constrain | Projection | None) -> Projection | None:
    return constrain if constrain is None or isinstance(constrain, Projection) else _OfFunction(constrain)


class _OfFunction:
    """Wraps a user's function (plan, row) as a `Projection`; it gets a copy, because it may work in place."""

    def __init__(self, constrain: Constrain) -> None:
        self._constrain = constrain

    def project(self, plan: Tensor, row: Row, step: int) -> Tensor:
        return self._constrain(plan.clone(), row)
