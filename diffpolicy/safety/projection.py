"""The projection of one chunk: which reverse steps it acts on, and the polish at the end.

Shape legend: B batch, H horizon, A action.
"""

import time
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from diffpolicy.codecs.codec import Codec
from diffpolicy.constraints.calls import margin_of
from diffpolicy.constraints.constraint import Quantity, Scene
from diffpolicy.constraints.limits import Box
from diffpolicy.constraints.projector import Projector
from diffpolicy.constraints.task import Task
from diffpolicy.diffusion.samplers.table import Row
from diffpolicy.safety.settings import Safety
from diffpolicy.system.replay import tensors_in, with_tensors

POLISH_ITERATIONS = 10
POLISH_TOLERANCE = 5e-4  # of half the range of the actions in the data


class SafetyProjection:
    """A `Projection` of the clean estimate [B, H, A] at each reverse step, and of the plan that is returned.

    Args:
        safety: the mode and the numbers of iterations.
        projector, task: the projector and its task for these robots.
        present: the index of the present in the plan.
        steps: the number of rows of the sampler. The call at step `steps` projects the plan that is returned.

    Attributes:
        shift: [B], the furthest that any one call moved a plan: the root mean square over its waypoints, in units of
            half the range of the actions in the data. It tells how far the plan is from what the network wanted.
        is_open: [B], whether the plan could continue straight on from its end for as long again, with obstacles as they
            are now.
        cost_s: the seconds spent in `project` so far.
    """

    def __init__(self, safety: Safety, projector: Projector, task: Task, present: int, steps: int) -> None:
        self._safety, self._projector, self._task = safety, projector, task
        self._present, self._steps = present, steps
        self._first = {"every_step": 0, "last_half": steps - steps // 2}.get(safety.mode, steps)
        self.shift = task.share.new_zeros(len(task.share))
        self.is_open = torch.ones_like(self.shift, dtype=torch.bool)
        self.cost_s = 0.0

    def project(self, plan: Tensor, row: Row, step: int) -> Tensor:
        """The nearest allowed plan.

        Returns the same tensor before the first projected step, and if the plan meets all constraints.
        """
        if step < self._first:
            return plan
        began = time.perf_counter()
        before, is_last = plan[:, self._present :], step == self._steps
        after = self._projected(before, is_last)
        if is_last and self._safety.candidates > 1:  # with one sample there is nothing to choose
            self.is_open = self._may_go_on(after)
        if after is not before:
            after = self._projector.where_finite(after, before)  # what fails for one robot does not stop the others
            moved = (after - before) / self._projector.half_range
            self.shift = self.shift.maximum(moved.square().sum(-1).mean(-1).sqrt())
            plan = torch.cat([plan[:, : self._present], after], dim=1)
        self.cost_s += time.perf_counter() - began
        return plan

    def key(self) -> Hashable:
        """Everything that the calls in the loop depend on besides `tensors`."""
        return self._projector, self._safety.mode, self._safety.iterations, self._present, self._steps

    def tensors(self) -> list[Tensor]:
        """The tensors that the calls in the loop read, each once."""
        return list({id(one): one for one in tensors_in(self._task)}.values())

    def twin(self, tensors: Sequence[Tensor]) -> "SafetyProjection":
        """A projection that has not been called yet and reads these tensors instead."""
        own = [id(one) for one in self.tensors()]
        task = with_tensors(self._task, dict(zip(own, tensors, strict=True)))
        return SafetyProjection(self._safety, self._projector, task, self._present, self._steps)

    def left(self) -> list[Tensor]:
        """The tensors that the calls in the loop leave behind."""
        return [self.shift, *self._task.multipliers]

    def take(self, left: Sequence[Tensor]) -> None:
        """Restore what the calls of a replayed loop left behind."""
        self.shift, *self._task.multipliers = left

    def _projected(self, plan: Tensor, is_last: bool) -> Tensor:
        if self._safety.mode == "clip":
            return self._clipped(plan)
        if not is_last:
            return self._projector.project(plan, self._task, self._safety.iterations)
        rounds = self._safety.polish_rounds
        tolerance = POLISH_TOLERANCE * self._projector.half_range
        return self._projector.polish(plan, self._task, POLISH_ITERATIONS, rounds, tolerance)

    def _may_go_on(self, plan: Tensor) -> Tensor:
        end, horizon = plan[:, -1], plan.shape[1]
        ahead = torch.stack([end, end + horizon * (end - plan[:, -2])], dim=1)[:, None]
        scene = Scene(self._task.obstacles, plan.new_zeros(1), error=0.0)  # as obstacles are now; later is unknown
        margins = [margin_of(c, ahead, scene)[:, 0] for c in self._safety.constraints if c.quantity.segments]
        return torch.stack([plan.new_zeros(len(plan)), *margins]).amin(0) >= 0.0

    def _clipped(self, plan: Tensor) -> Tensor:
        for constraint in self._safety.constraints:
            if isinstance(constraint, Box) and constraint.quantity == Quantity("commands"):
                plan = constraint.prox(plan, Scene(self._task.obstacles, plan.new_zeros(plan.shape[1])))(plan)
        return plan


def projection_metric(codec: Codec) -> Tensor:
    """[A], the weights of the axes in a projection of actions with this codec.

    Raises:
        ValueError: the codec has none.
    """
    if codec.metric is None:
        raise ValueError(
            f"safety: actions are encoded by {type(codec).__name__}, which has no metric; the projection needs a scale "
            "per axis, as the codec normalizer has"
        )
    return codec.metric
