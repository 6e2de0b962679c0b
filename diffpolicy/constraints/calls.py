"""Calls of constraints, among them users' own: these get copies, their results are checked, and what raises for one
robot's rows concerns that robot only.

Shape legend: B robots, R rows, A action.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from diffpolicy.constraints.constraint import Constraint, Prox, Scene
from diffpolicy.constraints.limits import Box, NormLimit, Polytope
from diffpolicy.constraints.planar.keep_out import BarrierDecrease, KeepOut
from diffpolicy.constraints.planar.obstacles import Obstacles, disc, together

OURS = (Box, NormLimit, Polytope, KeepOut, BarrierDecrease)


class ContractError(ValueError):
    """A constraint does not return what the protocol demands."""


def margin_of(constraint: Constraint, y: Tensor, scene: Scene) -> Tensor:
    """[B, R], the margin of rows y. It is -inf for a robot whose rows make a user's constraint raise."""
    if type(constraint) in OURS:
        return constraint.margin(y, scene)
    try:
        return _margin(constraint, y, scene)
    except Exception:
        if len(y) < 2:
            return y.new_full(y.shape[:2], -torch.inf)
    return torch.cat([margin_of(constraint, y[one], scene.robots(one)) for one in torch.arange(len(y)).split(1)])


def prox_of(constraint: Constraint, reference: Tensor, scene: Scene) -> Prox:
    """The constraint's projection. It leaves the rows of a robot for which a user's constraint raises as they are."""
    if type(constraint) in OURS:
        return constraint.prox(reference, scene)
    try:
        whole = constraint.prox(reference.clone(), _copy(scene))
    except Exception as error:
        if len(reference) < 2:
            return _same
        whole = _raising(error)

    def project(y: Tensor) -> Tensor:
        try:
            return _of_shape(constraint, y, whole(y.clone()))
        except Exception:
            if len(y) < 2:
                return y
        alone = [
            prox_of(constraint, reference[one], scene.robots(one))(y[one]) for one in torch.arange(len(y)).split(1)
        ]
        return torch.cat(alone)

    return project


def error_of(constraint: Constraint, y: Tensor, scene: Scene) -> str:
    """What a user's margin raises for these rows; empty if nothing."""
    try:
        margin = constraint.margin(y, scene) if type(constraint) in OURS else _margin(constraint, y, scene)
    except Exception as error:
        return f"margin of {type(constraint).__name__} raised {type(error).__name__}: {error}"
    return f"margin of {type(constraint).__name__} is NaN" if bool(margin.isnan().any()) else ""


def check_contract(constraints: Sequence[Constraint], action_dim: int) -> None:
    """Call users' constraints for one robot and for two, with rows that are made up, to see what they return.

    Errors of their own are ignored: they may concern these rows only.

    Raises:
        ContractError: a margin is not a floating tensor [B, R], or a projection does not keep the rows' shape.
    """
    for constraint in constraints:
        if type(constraint) in OURS:
            continue
        for batch, rows, slots in ((1, 1, 0), (2, 3, 2)):
            ends = [2] * constraint.quantity.segments
            y = torch.ones(batch, rows, *ends, action_dim, dtype=torch.float64)
            copies = y[:, None].expand(-1, max(1, slots), *y.shape[1:]) if ends else y
            scene = Scene(_far_away(batch, slots), torch.arange(1, rows + 1, dtype=torch.float64), error=0.0)
            _but_its_own_errors(lambda c=constraint, y=y, s=scene: _margin(c, y, s))
            _but_its_own_errors(
                lambda c=constraint, y=y, s=scene, z=copies: _of_shape(c, z, c.prox(y.clone(), _copy(s))(z.clone()))
            )


def _margin(constraint: Constraint, y: Tensor, scene: Scene) -> Tensor:
    found = constraint.margin(y.clone(), _copy(scene))
    name = f"constraints: margin of {type(constraint).__name__} returned"
    if not isinstance(found, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]: a user's may return anything
        raise ContractError(f"{name} a {type(found).__name__}, expected a tensor [B, R]")
    if not found.is_floating_point() or found.element_size() < 4:
        raise ContractError(f"{name} {found.dtype}, expected {y.dtype}: how far from harm each row is")
    if found.shape != y.shape[:2]:
        raise ContractError(
            f"{name} shape {list(found.shape)}, expected {list(y.shape[:2])} ([B, R]) for rows {list(y.shape)}"
        )
    return found.to(y)


def _of_shape(constraint: Constraint, y: Tensor, found: Tensor) -> Tensor:
    is_tensor = isinstance(found, Tensor)  # pyright: ignore[reportUnnecessaryIsInstance]: as above
    if not is_tensor or found.shape != y.shape or not found.is_floating_point():
        shown = f"{found.dtype} {list(found.shape)}" if is_tensor else f"a {type(found).__name__}"
        raise ContractError(
            f"constraints: prox of {type(constraint).__name__} gave {shown}, expected {y.dtype} {list(y.shape)}"
        )
    return found.to(y)


def _but_its_own_errors(call: Callable[[], Tensor]) -> None:
    try:
        call()
    except ContractError:
        raise
    except Exception:
        pass


def _same(y: Tensor) -> Tensor:
    return y


def _raising(error: Exception) -> Prox:
    def project(y: Tensor) -> Tensor:
        raise error

    return project


def _copy(scene: Scene) -> Scene:
    """A scene that a user may change without changing ours."""
    there = scene.obstacles
    copied = Obstacles(there.vertices.clone(), there.radius.clone(), there.speed.clone(), there.is_used.clone())
    at_rest = None if scene.at_rest is None else scene.at_rest.clone()
    error = scene.error.clone() if isinstance(scene.error, Tensor) else scene.error
    return Scene(copied, scene.time_s.clone(), at_rest, error)


def _far_away(batch: int, slots: int) -> Obstacles:
    there = together([disc(1e3, 1e3, 1.0)] * max(1, slots)).robots(torch.zeros(batch, dtype=torch.long))
    return Obstacles(*(part[:, :slots] for part in (there.vertices, there.radius, there.speed, there.is_used)))
