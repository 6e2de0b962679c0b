"""What a user demands of a plan, at every reverse step: from normalised actions to physical units and back.

Shape legend: B batch, H horizon, A action.
"""

from collections.abc import Callable, Hashable, Sequence
from functools import cached_property
from typing import Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from diffpolicy.codecs.codec import Codec
from diffpolicy.diffusion.samplers.table import Row
from diffpolicy.policy.clip import clip, identity

Constrain = Callable[[Tensor, Row], Tensor | None]
"""(plan [B, H, A] in physical units, row) -> the plan to go on with, same shape; None, from a `Replayable`: as is."""


@runtime_checkable
class Replayable(Protocol):
    """A `Constrain` whose calls within the loop are a function of tensors, which may be recorded and replayed."""

    def key(self) -> Hashable:
        """All that the calls depend on besides `tensors`."""
        ...

    def tensors(self) -> list[Tensor]:
        """What the calls read."""
        ...

    def twin(self, tensors: Sequence[Tensor]) -> Self:
        """One that has not been called and reads these instead."""
        ...

    def left(self) -> list[Tensor]:
        """What the calls made so far leave behind."""
        ...

    def take(self, left: Sequence[Tensor]) -> None:
        """Go on as if the calls of the loop that left this behind had been made here."""
        ...

    def __call__(self, plan: Tensor, row: Row, /) -> Tensor | None: ...


class PlanProjection:
    """To the data's limits, then to what the user demands, so that the demand is met last.

    Args:
        codec: of the actions.
        present: index of the present; waypoints before it pass unchanged.
        constrain: the user's demand; it may work in place, and returns the plan then, too.
    """

    def __init__(self, codec: Codec, present: int, constrain: Constrain | None) -> None:
        self._codec = codec
        self._to_data = identity if codec.limits is None else clip(*codec.limits)
        self._present = present
        self._constrain = constrain
        self._estimates: list[Tensor] = []  # before clip and constraint, which could hide what is not finite

    def project(self, clean: Tensor, row: Row) -> Tensor:
        """The clean estimate [B, H, A] that a reverse step goes on with."""
        self._estimates.append(clean)
        clean = self._to_data(clean, row)
        if self._constrain is None:
            return clean
        plan = self._constrained(self._constrain, self._codec.decode(clean), row)
        return clean if plan is None else self._after_past(clean, self._codec.encode(plan))

    def finish(self, clean: Tensor, row: Row) -> Tensor:
        """The plan [B, H, A] in physical units, constrained once more.

        Raises:
            ValueError: the plan or an estimate on the way has NaN or infinite values.
        """
        plan = self._codec.decode(clean)
        if self._constrain is not None:
            constrained = self._constrained(self._constrain, plan, row)
            plan = plan if constrained is None else self._after_past(plan, constrained)
        if not bool(torch.stack([*self._estimates, plan]).isfinite().all()):
            raise ValueError("policy: the plan has NaN or infinite values; the weights or the constraint are broken")
        return plan

    @property
    def is_replayable(self) -> bool:
        """Whether the calls of `project` are a function of tensors; then the five below are those of `Replayable`."""
        return self._constrain is None or self._replayable is not None

    def key(self) -> Hashable:
        return self._replayable.key() if self._replayable else None

    def tensors(self) -> list[Tensor]:
        return self._replayable.tensors() if self._replayable else []

    def twin(self, tensors: Sequence[Tensor]) -> "PlanProjection":
        constrain = self._replayable.twin(tensors) if self._replayable else None
        return PlanProjection(self._codec, self._present, constrain)

    def left(self) -> list[Tensor]:
        return [torch.stack(self._estimates), *(self._replayable.left() if self._replayable else [])]

    def take(self, left: Sequence[Tensor]) -> None:
        self._estimates = list(left[0])
        if self._replayable:
            self._replayable.take(left[1:])

    @cached_property
    def _replayable(self) -> Replayable | None:
        return self._constrain if isinstance(self._constrain, Replayable) else None

    def _constrained(self, constrain: Constrain, plan: Tensor, row: Row) -> Tensor | None:
        constrained = constrain(plan.clone(), row)
        if constrained is None:
            if self._replayable is None:  # it may have worked in place
                raise ValueError("constraint: returned None, expected the plan")
            return None
        if constrained.shape != plan.shape:
            raise ValueError(f"constraint: returned shape {list(constrained.shape)}, expected {list(plan.shape)}")
        return constrained

    def _after_past(self, before: Tensor, after: Tensor) -> Tensor:
        return torch.cat([before[:, : self._present], after[:, self._present :]], dim=1)
