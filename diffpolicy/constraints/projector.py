"""Projection of plans onto all constraints by a fixed number of ADMM iterations (Boyd et al. 2011, section 5).

    minimise 1/2 |u - plan|^2_W   subject to   G u + g = z,  z in C

W is the metric of the normalised actions, in which the network's estimate lives. One matrix, inverted in advance, gives
the commands u. All geometry sits in the proxes of z. Each constraint has its own penalty, as if its rows were scaled to
norm 1: with one penalty for all, a few iterations overshoot accelerations many times over. A set that is not convex is
replaced by a convex part of it near the plan, chosen again in every round.

If the rows are segments, each obstacle has its own copy of them. The copies of a robot share the penalty of the
constraint, so that one matrix works for robots with few obstacles and with many.

Shape legend: B batch, N commands of a plan, R rows of one constraint (two per segment), C copies of them (one per
obstacle slot if the rows are segments), A action. A constraint sees its rows as [B, R, A], or as [B, C, R / 2, 2, A].
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from diffpolicy.constraints.calls import prox_of
from diffpolicy.constraints.constraint import Constraint, Scene
from diffpolicy.constraints.knots import CAUSES, blocks
from diffpolicy.constraints.limits import Polytope
from diffpolicy.constraints.planar.obstacles import Obstacles
from diffpolicy.constraints.plant import LinearPlant
from diffpolicy.constraints.task import Near, Task
from diffpolicy.constraints.trajectory import Start

RELAXATION = 1.6  # Boyd et al. 2011, section 3.4.3


class Projector:
    """Projects plans [B, N, A] of physical commands, with the dtype and on the device of `metric`.

    Args:
        constraints: the constraints to meet together.
        plant: the plant; required if a constraint acts on the motion.
        period_s: seconds from command to command.
        horizon: N, the number of commands in a plan.
        metric: [A], the weight of each axis: the square of the normaliser's scale.
        slots: the largest number of obstacles per robot.
        penalty: the penalty of ADMM, relative to the mean of `metric`.

    Raises:
        ValueError: a constraint acts on the motion, but there is no plant, or the metric is not finite and positive.
    """

    def __init__(
        self,
        constraints: Sequence[Constraint],
        plant: LinearPlant | None,
        period_s: float,
        horizon: int,
        metric: Tensor,
        slots: int,
        penalty: float = 3.0,
    ) -> None:
        if not bool((metric > 0).all() and metric.isfinite().all()):
            raise ValueError(f"projector: metric {metric.tolist()} must be finite and above 0")
        self._slots, self._like = slots, metric
        self._may_look = metric.device.type == "cpu"  # branch on values; off the CPU the host would wait
        self.half_range = float(metric.double().max().rsqrt())  # half the range of the actions in the data
        simple = [one for c in constraints for one in (c.faces() if isinstance(c, Polytope) else (c,))]
        self._blocks = blocks(simple, plant, period_s, horizon, penalty)
        self._sizes = [len(block.matrix) for block in self._blocks]
        empty = torch.zeros(0, horizon + CAUSES, dtype=torch.float64)
        rows = torch.cat([empty, *(torch.cat([b.matrix, b.before], dim=1) for b in self._blocks)])
        pulls = torch.cat([empty[:, :horizon], *(b.penalty[:, None] * b.matrix for b in self._blocks)])
        matrix, before = rows.split([horizon, CAUSES], dim=1)
        weight = (metric / metric.mean()).double().cpu()[:, None, None]
        inverse = torch.linalg.inv(weight * torch.eye(horizon) + pulls.mT @ matrix)  # [A, N, N]
        axes = len(metric)
        self._rows_of_commands = matrix.mT.expand(axes, -1, -1).to(metric)  # [A, N, all R]
        self._rows_of_causes = before.mT.expand(axes, -1, -1).to(metric)  # [A, CAUSES, all R]
        self._from_plan = (inverse * weight).mT.to(metric)  # [A, N, N]
        self._from_rows = (inverse @ pulls.mT).mT.to(metric)  # [A, all R, N]

    def task(self, start: Start, obstacles: Obstacles) -> Task:
        """Start a projection task for these robots.

        Raises:
            ValueError: there are more obstacles than slots.
        """
        like = self._like
        start = start.to(like)
        obstacles.check_slots(self._slots)
        obstacles = obstacles.only_known  # with the others, nothing is certified anyway
        # Off the CPU, one captured loop must work for any number of obstacles.
        obstacles = obstacles.without_empty_slots if self._may_look else obstacles.padded(self._slots)
        obstacles = obstacles if obstacles.slots else obstacles.padded(1)  # rows need at least one copy
        obstacles = obstacles.to(like)
        is_used = obstacles.is_used
        causes = torch.cat([start.state.position[:, None], start.state.velocity[:, None], start.commands], dim=1)
        # A robot without obstacles uses the first copy.
        shared = torch.cat([is_used[:, :1] | ~is_used.any(1, keepdim=True), is_used[:, 1:]], dim=1).to(like)
        share = shared / shared.sum(1, keepdim=True)
        offset = torch.bmm(causes.movedim(-1, 0), self._rows_of_causes)
        scenes = [Scene(obstacles, block.time_s.to(like)) for block in self._blocks]
        return Task(obstacles, offset, share[..., None, None, None], scenes)

    def project(self, plan: Tensor, task: Task, iterations: int) -> Tensor:
        """The plan [B, N, A] nearest to `plan`, as far as the iterations get.

        A plan that meets all constraints is unchanged. On an accelerator, nothing waits for the host.
        """
        return self._nearer(plan, plan, task, iterations, 0.0)

    def polish(self, plan: Tensor, task: Task, iterations: int, rounds: int, tolerance: float) -> Tensor:
        """Like `project`, in up to `rounds` rounds. A robot whose rows are all within `tolerance` keeps its plan."""
        commands = plan
        for _ in range(rounds):
            before, commands = commands, self._nearer(plan, commands, task, iterations, tolerance)
            if commands is before:
                break
        return commands

    def where_finite(self, plan: Tensor, otherwise: Tensor) -> Tensor:
        """The plans [B, N, A] of the robots for which they are finite; the other ones for the others."""
        if self._may_look and bool(plan.isfinite().all()):
            return plan
        return torch.where(plan.isfinite().flatten(1).all(1)[:, None, None], plan, otherwise)

    def shortfall(self, commands: Tensor, task: Task) -> Tensor:
        """[B], the largest distance of any row at a knot from the set near it."""
        return self._near(commands, task).shortfall if self._blocks else commands.new_zeros(len(commands))

    def _nearer(self, plan: Tensor, commands: Tensor, task: Task, iterations: int, tolerance: float) -> Tensor:
        """Replace the commands that fall short by the result of the iterations. Returns the same tensor if none does.

        Rows inside the convex sets of an earlier call are allowed. New sets are computed only for the others.
        """
        if not self._blocks:
            return commands
        if not self._may_look:
            return self._solved(plan, commands, self._near(commands, task), task, iterations, tolerance)
        is_first = not task.proxes
        near = self._near(commands, task) if is_first else Near(self._seen(commands, task), task.proxes)
        task.proxes = near.proxes
        if near.is_met:
            return commands
        is_met = near.shortfall <= tolerance
        if bool(is_met.all()):
            return commands
        doubtful = (~is_met).nonzero().squeeze(1)
        if len(doubtful) == len(commands):
            near = near if is_first else self._near(commands, task)
            return self._solved(plan, commands, near, task, iterations, tolerance)
        some, now = task.robots(doubtful), commands[doubtful]
        solved = self._solved(plan[doubtful], now, self._near(now, some), some, iterations, tolerance)
        if solved is now:
            return commands
        task.multipliers = task.multipliers or [torch.zeros_like(rows) for rows in near.rows]
        for all_of_them, new in zip(task.multipliers, some.multipliers, strict=True):
            all_of_them[doubtful] = new
        return commands.index_copy(0, doubtful, solved)

    def _solved(
        self, plan: Tensor, commands: Tensor, near: Near, task: Task, iterations: int, tolerance: float
    ) -> Tensor:
        task.proxes = near.proxes
        is_short = ~(near.shortfall <= tolerance)
        if self._may_look and not bool(is_short.any()):
            return commands
        return torch.where(is_short[:, None, None], self._solve(plan, near, task, iterations), commands)

    def _solve(self, plan: Tensor, near: Near, task: Task, iterations: int) -> Tensor:
        """Run ADMM from the rows of `near` and the multipliers of the last call."""
        y = task.multipliers or [torch.zeros_like(one) for one in near.rows]
        z = [prox(one + other) for prox, one, other in zip(near.proxes, near.rows, y, strict=True)]
        plan = torch.bmm(plan.movedim(-1, 0), self._from_plan)
        still = torch.baddbmm(plan, task.offset, self._from_rows, alpha=-1.0)
        commands = still  # [A, B, N]
        for _ in range(iterations):
            commands = torch.baddbmm(still, self._pull(z, y, task), self._from_rows)
            for i, rows in enumerate(self._rows(commands, task)):
                relaxed = torch.lerp(z[i], rows, RELAXATION) + y[i]
                z[i] = near.proxes[i](relaxed)
                y[i] = relaxed - z[i]
        task.multipliers = y
        return commands.movedim(0, -1)

    def _pull(self, z: list[Tensor], y: list[Tensor], task: Task) -> Tensor:
        """[A, B, all R], the target that all rows are pulled to."""
        pulls: list[Tensor] = []
        for block, near, multiplier in zip(self._blocks, z, y, strict=True):
            pull = near - multiplier
            pulls.append(((pull * task.share).sum(1).flatten(1, 2) if block.segments else pull).movedim(-1, 0))
        return torch.cat(pulls, dim=-1)

    def _near(self, commands: Tensor, task: Task) -> Near:
        rows = self._seen(commands, task)
        proxes = [
            prox_of(block.constraint, one[:, 0] if block.segments else one, scene)
            for block, one, scene in zip(self._blocks, rows, task.scenes, strict=True)
        ]
        return Near(rows, proxes)

    def _seen(self, commands: Tensor, task: Task) -> list[Tensor]:
        """The rows of each constraint for commands [B, N, A]."""
        return self._rows(commands.movedim(-1, 0), task)

    def _rows(self, commands: Tensor, task: Task) -> list[Tensor]:
        """The rows of each constraint for commands [A, B, N]."""
        rows = torch.baddbmm(task.offset, commands, self._rows_of_commands).movedim(0, -1)
        parts: list[Tensor] = []
        for block, part in zip(self._blocks, rows.split(self._sizes, dim=1), strict=True):
            copies = task.share.shape[1]
            parts.append(part.unflatten(1, (-1, 2))[:, None].expand(-1, copies, -1, -1, -1) if block.segments else part)
        return parts
