"""Constraint rows at the knots of a plan (once or twice per tick), as matrices on commands and on what came before.

Shape legend: N commands of a plan, R rows of one constraint (two per segment).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffpolicy.constraints.constraint import Constraint, Quantity
from diffpolicy.constraints.plant import LinearPlant, State
from diffpolicy.constraints.trajectory import PAST_COMMANDS, Start, Trajectory, needed

CAUSES = PAST_COMMANDS + 2  # of a motion besides the plan: position, velocity and earlier commands


@dataclass(frozen=True)
class Block:
    """The rows of one constraint at the knots: matrix u + before start.

    A constraint on positions of the motion applies to the commands as well, as further rows, because the robot may be
    left to go to each of them.
    """

    constraint: Constraint
    matrix: Tensor  # [R, N]
    before: Tensor  # [R, CAUSES]
    penalty: Tensor  # [R]
    time_s: Tensor

    @property
    def segments(self) -> bool:
        return self.constraint.quantity.segments


def blocks(
    constraints: Sequence[Constraint], plant: LinearPlant | None, period_s: float, horizon: int, penalty: float
) -> list[Block]:
    """One block per constraint, for plans of `horizon` commands.

    Raises:
        ValueError: a constraint acts on the motion, but there is no plant.
    """
    basis = _basis(plant, period_s, horizon)
    return [_block(constraint, basis, penalty) for constraint in constraints]


def _basis(plant: LinearPlant | None, period_s: float, horizon: int) -> Trajectory:
    """A batch of unit causes: one robot per command of the plan and per earlier cause. Rows are linear in them."""
    unit = torch.eye(horizon + CAUSES, dtype=torch.float64)[..., None]
    commands, position, velocity, before = unit.split([horizon, 1, 1, PAST_COMMANDS], dim=1)
    return Trajectory(commands, Start(State(position[:, 0], velocity[:, 0]), before), plant, period_s)


def _block(constraint: Constraint, basis: Trajectory, penalty: float) -> Block:
    seen = constraint.quantity
    quantities = [seen]
    if seen.acts_on == "motion" and seen.order == 0:
        quantities.append(Quantity("commands", segments=seen.segments))
    knots = [_knots(basis, one) for one in quantities]
    horizon = basis.commands.shape[1]
    norms = [torch.linalg.matrix_norm(matrix[:, :horizon], 2) for matrix, _ in knots]
    penalties = [(penalty / norm**2).expand(len(matrix)) for norm, (matrix, _) in zip(norms, knots, strict=True)]
    matrix, before = torch.cat([matrix for matrix, _ in knots]).split([horizon, CAUSES], dim=1)
    return Block(constraint, matrix, before, torch.cat(penalties), torch.cat([time_s for _, time_s in knots]))


def _knots(basis: Trajectory, quantity: Quantity) -> tuple[Tensor, Tensor]:
    """The quantity's rows at the end of every tick, as a matrix [R, N + CAUSES], and when each (segment) is reached.

    Speeds and their derivatives are also taken in the middle of a tick, if a sub-step ends there: they may peak there.
    """
    y, time_s = basis.quantity(quantity), basis.times_s(quantity)
    stride = 1 if quantity.acts_on == "commands" else needed(basis.plant).substeps
    if quantity.segments:
        y = torch.stack([y[:, ::stride, 0], y[:, stride - 1 :: stride, 1]], dim=2).flatten(1, 2)
    else:
        stride = stride // 2 if quantity.order and stride % 2 == 0 else stride
        y = y[:, stride - 1 :: stride]
    return y[..., 0].mT, time_s[stride - 1 :: stride]
