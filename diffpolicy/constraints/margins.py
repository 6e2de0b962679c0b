"""Margins of whole plans: the least margin over all rows, minus the effect of errors.

Shape legend: Q plans, R rows, A action.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffpolicy.constraints.assumptions import Assumptions
from diffpolicy.constraints.calls import margin_of
from diffpolicy.constraints.constraint import Constraint, Scene
from diffpolicy.constraints.planar.obstacles import Obstacles
from diffpolicy.constraints.trajectory import Start, Trajectory, needed
from diffpolicy.constraints.vectors import length


def of_commands(constraints: Sequence[Constraint], plans: Trajectory, obstacles: Obstacles) -> Tensor:
    """[Q], the margin of constraints on commands."""
    least = plans.commands.new_full((len(plans.commands),), torch.inf)
    for constraint in constraints:
        scene = Scene(obstacles, plans.times_s(constraint.quantity), error=0.0)
        least = torch.minimum(least, margin_of(constraint, plans.quantity(constraint.quantity), scene).amin(1))
    return least


def of_motion(
    constraints: Sequence[Constraint],
    plans: Trajectory,
    obstacles: Obstacles,
    assumptions: Assumptions,
    relief: Tensor | None = None,
) -> Tensor:
    """[Q], the margin of constraints on the motion. The last command of each plan is held indefinitely.

    Args:
        relief: [Q], added to the margins of positions; none by default.
    """
    least = plans.commands.new_full((len(plans.commands),), torch.inf)
    if not constraints or len(least) == 0:
        return least
    moves = obstacles.moves().any(1)
    known = _known(plans, assumptions, bool(moves.any()))
    error = (known.position_tube + plans.inside[0])[:, None]
    scene = Scene(obstacles, plans.times_s(constraints[0].quantity), known.at_rest, error)
    for constraint in constraints:
        if constraint.quantity.order == 1:
            margin = _inside_too(_of_velocity(constraint, plans, scene) - known.velocity_tube, plans, 1)
        elif constraint.quantity.order == 0:
            found = _of_position(constraint, plans, scene) - known.position_tube
            margin = _inside_too(found if relief is None else found + relief[:, None], plans, 0)
        else:
            margin = margin_of(constraint, plans.quantity(constraint.quantity), scene).amin(1)
        least = torch.minimum(least, margin)
    if known.at_rest is None:
        return least
    return torch.where(known.at_rest[:, -1] | ~moves, least, -torch.inf)


def _of_position(constraint: Constraint, plans: Trajectory, scene: Scene) -> Tensor:
    """[Q, R], the margin of the segment of each sub-step: for a constraint on points, the lesser one of both ends."""
    if constraint.quantity.segments:
        return margin_of(constraint, plans.quantity(constraint.quantity), scene)
    times_s = torch.cat([scene.time_s.new_zeros(1), scene.time_s])
    margin = margin_of(constraint, plans.motion[0], Scene(scene.obstacles, times_s))
    return torch.minimum(margin[:, 1:], margin[:, :-1])


def _of_velocity(constraint: Constraint, plans: Trajectory, scene: Scene) -> Tensor:
    """[Q, R], the least margin of the velocities in each sub-step: the mean, and those of the plant."""
    times_s = torch.cat([scene.time_s.new_zeros(1), scene.time_s])
    at_ends = margin_of(constraint, plans.motion[1], Scene(scene.obstacles, times_s))
    least = torch.minimum(at_ends[:, 1:], at_ends[:, :-1])
    for y in plans.velocities:
        least = torch.minimum(least, margin_of(constraint, y, Scene(scene.obstacles, scene.time_s)))
    return least


def _inside_too(found: Tensor, plans: Trajectory, order: int) -> Tensor:
    """[Q], the least of margins [Q, R], less what happens within the sub-steps: to the position or to the velocity.

    A quick bound of that is good enough if the margin stays above 0.
    """
    margin = (found - plans.inside[order]).amin(1)
    if bool((margin >= 0).all()):
        return margin
    left = (~(margin >= 0) & (found.amin(1) >= 0)).nonzero().squeeze(1)
    if len(left):
        some = plans.robots(left)
        margin[left] = (found[left] - (some.excess if order else some.bulge)).amin(1)
    return margin


def of_the_present(
    constraints: Sequence[Constraint], start: Start, obstacles: Obstacles, assumptions: Assumptions
) -> Tensor:
    """[B], the margin of the present positions. Nothing is excused: a robot at rest in an obstacle is inside it."""
    here = start.state.position[:, None]
    least = here.new_full((len(here),), torch.inf)
    error = assumptions.position_error + assumptions.tracking_error
    scene = Scene(obstacles, here.new_zeros(1), error=error)
    for constraint in constraints:
        if constraint.quantity.order == 0:
            y = here[:, :, None].expand(-1, -1, 2, -1) if constraint.quantity.segments else here
            least = torch.minimum(least, margin_of(constraint, y, scene)[:, 0])
    return least - error


@dataclass(frozen=True)
class _Known:
    """Bounds on the motion in every sub-step, [Q, R] each: `position_tube` is how far the path may be from the segment
    between the predicted positions at both ends. at_rest is None if no obstacle moves."""

    at_rest: Tensor | None
    position_tube: Tensor
    velocity_tube: Tensor


def _known(plans: Trajectory, assumptions: Assumptions, has_moving: bool) -> _Known:
    plant = needed(plans.plant)
    tube, velocity_tube = assumptions.tubes(plant, plans.commands, plans.start)
    # After the last row, the robot may still travel the rest of the way to the held target.
    position, velocity = plans.motion
    last = substep_speed(position[:, -2:], velocity[:, -2:], plant.substep_s)[:, 0]
    offset = length(position[:, -1] - plans.commands[:, -1])
    to_come = plans.commands.new_tensor(plant.largest_free_response) @ torch.stack([offset, last])  # [2, Q]
    tube = torch.cat([tube[:, :-1], (tube[:, -1] + to_come[0])[:, None]], dim=1)
    # Both ends of a segment count. The first segment starts with the errors of the present.
    present = tube.new_full((len(tube), 1), assumptions.position_error + assumptions.tracking_error)
    tube = torch.maximum(tube, torch.cat([present, tube[:, :-1]], dim=1))
    if not has_moving:
        return _Known(None, tube, velocity_tube)
    speed = substep_speed(position, velocity, plant.substep_s)
    for y in plans.velocities:
        speed = speed.maximum(length(y))
    speed = speed + plans.inside[1]
    speed = torch.cat([speed[:, :-1], to_come[1, :, None]], dim=1)
    present = present.new_full(present.shape, assumptions.velocity_error + assumptions.tracking_velocity_error)
    either_end = torch.maximum(velocity_tube, torch.cat([present, velocity_tube[:, :-1]], dim=1))
    return _Known(speed + either_end <= assumptions.rest_speed, tube, velocity_tube)


def substep_speed(position: Tensor, velocity: Tensor, substep_s: float) -> Tensor:
    """[Q, R], the speed in each sub-step: the larger of its mean and the speeds at its ends.

    The states are [Q, 1 + R, A].
    """
    at_ends = length(velocity)
    mean = length(position.diff(dim=1)) / substep_s
    return torch.maximum(mean, torch.maximum(at_ends[:, 1:], at_ends[:, :-1]))
