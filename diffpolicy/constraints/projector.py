"""The nearest plan that meets all constraints, by a fixed number of ADMM iterations (Boyd et al. 2011, section 5).

    minimise 1/2 |u - plan|^2_W   subject to   G u + g = z,  z in C

W is the metric of the normalised actions, in which the network's estimate lives. One matrix, inverted beforehand,
gives the commands u; all geometry sits in the proxes of z. Each constraint has a penalty of its own, as if its rows
were scaled to norm 1: with one for all, a few iterations overshoot accelerations manifold. A set that is not convex is
replaced by a convex part of it near the plan, anew in every round.

Shape legend: B batch, N commands of a plan, R rows of one constraint (two a segment), C copies of them (one an
obstacle slot, where rows are segments), A action.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from diffpolicy.constraints.constraint import Constraint, Prox, Rows, Scene
from diffpolicy.constraints.obstacles import Obstacles
from diffpolicy.constraints.plant import LinearPlant, State
from diffpolicy.constraints.trajectory import PAST_COMMANDS, Start, needed, row_times_s, rows_of

RELAXATION = 1.6  # Boyd et al. 2011, section 3.4.3


@dataclass(frozen=True)
class _Block:
    """The rows of one constraint, matrix u + offset, at the knots: of the motion, one a tick."""

    constraint: Constraint
    matrix: Tensor  # [R, N]
    penalty: float
    stride: int  # sub-steps from knot to knot
    time_s: Tensor


@dataclass
class Task:
    """One batch of robots to plan for; carries the multipliers from call to call.

    Attributes:
        start, obstacles: of these robots.
        offsets: rows without commands, [B, 1, R, A] per constraint.
        multipliers: [B, C, R, A] per constraint; empty before the first call.
    """

    start: Start
    obstacles: Obstacles
    offsets: list[Tensor]
    multipliers: list[Tensor] = field(default_factory=list)


class _Held:
    """What a constraint on positions of the motion means for commands: a robot may be left to go to each of them."""

    def __init__(self, constraint: Constraint) -> None:
        self.rows = Rows("commands", segments=constraint.rows.segments)
        self.prox, self.margin = constraint.prox, constraint.margin


class Projector:
    """Projects plans [B, N, A] of physical commands, in the type and on the device of `metric`.

    Args:
        constraints: to be met together.
        plant: where one of them acts on the motion.
        period_s: seconds from command to command.
        horizon: N.
        metric: [A], the weight of each axis: the square of the normaliser's scale.
        slots: for obstacles.
        penalty: ADMM's, relative to the mean metric.

    Raises:
        ValueError: a constraint on the motion without a plant, a metric that is not finite and positive.
    """

    def __init__(
        self,
        constraints: Sequence[Constraint],
        plant: LinearPlant | None,
        period_s: float,
        horizon: int,
        metric: Tensor,
        slots: int,
        penalty: float = 1.0,
    ) -> None:
        if not bool((metric > 0).all() and metric.isfinite().all()):
            raise ValueError(f"projector: metric {metric.tolist()} must be finite and above 0")
        self._plant, self._period_s, self._horizon, self._slots = plant, period_s, horizon, slots
        self._like = metric
        self.half_range = float(metric.double().max().rsqrt())  # of the actions in the data, in their units
        held = [_Held(c) for c in constraints if c.rows.acts_on == "motion" and c.rows.order == 0]
        self._blocks = [self._block(constraint, penalty) for constraint in (*constraints, *held)]
        weight = (metric / metric.mean()).double()[:, None, None]
        rows = torch.cat([torch.zeros(0, horizon).to(weight), *(block.matrix for block in self._blocks)])
        pulls = torch.cat([torch.zeros(0, horizon).to(weight), *(b.penalty * b.matrix for b in self._blocks)])
        squares = [self._copies(b) * b.penalty * b.matrix.mT @ b.matrix for b in self._blocks]
        inverse = torch.linalg.inv(weight * torch.eye(horizon).to(weight) + sum(squares))  # [A, N, N]
        self._matrix = rows.to(metric)
        self._sizes = [len(block.matrix) for block in self._blocks]
        self._from_plan = (inverse * weight).to(metric)
        self._from_rows = (inverse @ pulls.mT).to(metric)  # [A, N, all R]

    def task(self, start: Start, obstacles: Obstacles) -> Task:
        """Begin to plan for these robots.

        Raises:
            ValueError: more obstacles than slots.
        """
        like, start = self._like, start.to(self._like)
        padded = obstacles.padded(self._slots)
        vertices, radius, speed = (part.to(like) for part in (padded.vertices, padded.radius, padded.speed))
        still = like.new_zeros(len(start.commands), self._horizon, len(like))
        offsets = [self._rows(block.constraint, block.stride, still, start)[:, None] for block in self._blocks]
        is_used = padded.is_used & padded.is_valid()[:, None]  # the certificate refuses the others
        return Task(start, Obstacles(vertices, radius, speed, is_used.to(like.device)), offsets)

    def project(self, plan: Tensor, task: Task, iterations: int) -> Tensor:
        """The plan [B, N, A] nearest to `plan`, up to what the iterations leave; nothing waits for the host."""
        return self._solve(plan, plan, task, iterations)

    def polish(self, plan: Tensor, task: Task, iterations: int, rounds: int, tolerance: float) -> Tensor:
        """As `project`, in up to `rounds`; a robot whose rows are all within `tolerance` keeps its plan."""
        commands = plan
        for _ in range(rounds):
            short = self.shortfall(commands, task) > tolerance
            if not bool(short.any()):
                break
            commands = torch.where(short[:, None, None], self._solve(plan, commands, task, iterations), commands)
        return commands

    def shortfall(self, commands: Tensor, task: Task) -> Tensor:
        """[B], the farthest that any row at a knot is from where its constraint wants it."""
        pairs = zip(self._proxes(commands, task), self._all_rows(commands, task), self._blocks, strict=True)
        gaps = [(prox(y) - y).abs().flatten(1) for prox, rows, b in pairs for y in (self._spread(rows, b),)]
        return torch.cat([commands.new_zeros(len(commands), 1), *gaps], dim=1).amax(1)

    def _solve(self, plan: Tensor, reference: Tensor, task: Task, iterations: int) -> Tensor:
        wanted = _by_axis(self._from_plan, plan)
        proxes = self._proxes(reference, task)
        rows = [
            self._spread(one, block) for one, block in zip(self._all_rows(reference, task), self._blocks, strict=True)
        ]
        y = task.multipliers or [torch.zeros_like(one) for one in rows]
        z = [prox(one + other) for prox, one, other in zip(proxes, rows, y, strict=True)]
        commands = reference
        for _ in range(iterations if self._blocks else 0):
            pull = [(one - other - o).sum(1) for one, other, o in zip(z, y, task.offsets, strict=True)]
            commands = wanted + _by_axis(self._from_rows, torch.cat(pull, dim=1))
            for i, one in enumerate(self._all_rows(commands, task)):
                relaxed = torch.lerp(z[i], one.expand_as(z[i]), RELAXATION) + y[i]
                z[i] = proxes[i](relaxed)
                y[i] = relaxed - z[i]
        task.multipliers = y
        return commands

    def _all_rows(self, commands: Tensor, task: Task) -> list[Tensor]:
        """Rows [B, 1, R, A] of each constraint."""
        parts = torch.matmul(self._matrix, commands)[:, None].split(self._sizes, dim=2) if self._blocks else ()
        return [part + offset for part, offset in zip(parts, task.offsets, strict=True)]

    def _spread(self, rows: Tensor, block: _Block) -> Tensor:
        return rows.expand(-1, self._copies(block), -1, -1)

    def _proxes(self, reference: Tensor, task: Task) -> list[Prox]:
        """Of every constraint, on rows [B, C, R, A]."""
        return [
            self._prox(block, rows[:, 0], Scene(task.obstacles, block.time_s))
            for block, rows in zip(self._blocks, self._all_rows(reference, task), strict=True)
        ]

    def _prox(self, block: _Block, reference: Tensor, scene: Scene) -> Prox:
        if block.constraint.rows.segments:
            near = block.constraint.prox(reference.unflatten(1, (-1, 2)), scene)
            return lambda y: near(y.unflatten(2, (-1, 2))).flatten(2, 3)
        inside = block.constraint.prox(reference, scene)
        return lambda y: inside(y[:, 0])[:, None]

    def _copies(self, block: _Block) -> int:
        return self._slots if block.constraint.rows.segments else 1

    def _block(self, constraint: Constraint, penalty: float) -> _Block:
        rows = constraint.rows
        stride = 1 if rows.acts_on == "commands" else needed(self._plant).substeps
        basis = torch.eye(self._horizon, dtype=torch.float64)[..., None]
        zero = torch.zeros(self._horizon, 1, dtype=torch.float64)
        at_zero = Start(State(zero, zero), zero[:, None].expand(-1, PAST_COMMANDS, -1))
        matrix = self._rows(constraint, stride, basis, at_zero)[..., 0].mT.to(self._like.device)
        time_s = row_times_s(rows, self._plant, self._period_s, self._horizon)[stride - 1 :: stride]
        norm = float(torch.linalg.matrix_norm(matrix, 2))
        return _Block(constraint, matrix, penalty / norm**2, stride, time_s.to(self._like))

    def _rows(self, constraint: Constraint, stride: int, commands: Tensor, start: Start) -> Tensor:
        """[B, R, A], the rows at the knots."""
        y = rows_of(constraint.rows, self._plant, self._period_s, commands, start)
        if not constraint.rows.segments:
            return y[:, stride - 1 :: stride]
        return torch.stack([y[:, ::stride, 0], y[:, stride - 1 :: stride, 1]], dim=2).flatten(1, 2)


def _by_axis(matrices: Tensor, y: Tensor) -> Tensor:
    """matrices [A, N, R] on y [B, R, A], each axis by its own: [B, N, A]."""
    return torch.bmm(y.movedim(-1, 0), matrices.mT).movedim(0, -1)
