"""Users' own constraints: what they return is checked, they get copies, and what raises for one robot is its own."""

from dataclasses import dataclass, field

import pytest
import torch
from one_case import over
from torch import Tensor

from diffpolicy.constraints.assumptions import Assumptions
from diffpolicy.constraints.calls import ContractError, check_contract, margin_of, prox_of
from diffpolicy.constraints.certificate import Certifier
from diffpolicy.constraints.constraint import Quantity, Scene
from diffpolicy.constraints.limits import Box
from diffpolicy.constraints.planar.keep_out import KeepOut
from diffpolicy.constraints.planar.obstacles import disc, no_obstacles
from diffpolicy.constraints.plant import State, position_servo
from diffpolicy.constraints.trajectory import Start

PLANT = position_servo(100.0, 20.0, 0.02, 5)
AT = torch.tensor([[1.0, 0.0], [2.0, 0.0]], dtype=torch.float64)
START = Start(State(AT, 0 * AT), AT[:, None].repeat(1, 3, 1))
COMMANDS = AT[:, None] + 0.1 * torch.arange(1.0, 4.0, dtype=torch.float64)[None, :, None]


@dataclass
class Own:
    """A user's constraint of which every method can be chosen."""

    returned: object = None
    projected: object = None
    quantity: Quantity = field(default_factory=lambda: Quantity("motion"))

    def prox(self, reference: Tensor, scene: Scene):
        return self.projected or (lambda y: y)

    def margin(self, y: Tensor, scene: Scene):
        return self.returned(y, scene) if callable(self.returned) else 1.0 + 0.0 * y.flatten(2)[..., 0]


def certify(*constraints):
    return Certifier(constraints, PLANT, 0.1, Assumptions()).certify(COMMANDS, START, no_obstacles(2))


def distance(y: Tensor) -> Tensor:
    return 1.0 + 0.0 * y.flatten(2)[..., 0]


RETURNED = {
    "torch.bool": lambda y, scene: distance(y) > 2.0,
    "torch.int64": lambda y, scene: distance(y).long(),
    "torch.float16": lambda y, scene: distance(y).half(),
    "shape [2]": lambda y, scene: distance(y).amin(1) if len(y) > 1 else distance(y),
    "shape [1, 3]": lambda y, scene: distance(y)[:1],
    "shape [2, 1]": lambda y, scene: distance(y).amin(1, keepdim=True),
    "shape []": lambda y, scene: distance(y).amin(),
    "shape [1]": lambda y, scene: distance(y).squeeze(0) if len(y) == 1 else distance(y),
    "a float": lambda y, scene: 1.0,
    "a ndarray": lambda y, scene: distance(y).numpy(),
    "a NoneType": lambda y, scene: None,
}


@over("found", [*RETURNED])
@over("quantity", [Quantity("motion"), Quantity("commands", 1), Quantity("motion", segments=True)])
def test_a_margin_other_than_the_protocols_is_refused_by_name(found: str, quantity: Quantity) -> None:
    own = Own(RETURNED[found], quantity=quantity)
    message = rf"margin of Own returned {found}".replace("[", r"\[").replace("]", r"\]")
    with pytest.raises(ContractError, match=message):
        check_contract([own], 2)
    with pytest.raises(ContractError, match=message):
        certify(own)


def test_a_projection_of_another_shape_is_refused_by_name() -> None:
    for projected in (lambda y: y[:, :1] if y.shape[1] > 1 else y[..., :1], lambda y: None, lambda y: y > 0):
        with pytest.raises(ContractError, match="prox of Own gave"):
            check_contract([Own(projected=projected)], 2)


def test_what_the_protocol_demands_is_accepted_and_single_precision_too() -> None:
    for quantity in (Quantity("motion"), Quantity("motion", 1), Quantity("commands", segments=True)):
        check_contract([Own(quantity=quantity)], 3)
    assert certify(Own(lambda y, scene: distance(y).float())).length.tolist() == [3, 3]


def test_margins_that_are_nan_certify_nothing() -> None:
    found = certify(Own(lambda y, scene: torch.where(y[..., 0] > 1.5, torch.nan, distance(y))))
    assert found.length.tolist() == [3, 0]
    assert found.can_stop.tolist() == [True, False]


def spoil(y: Tensor, scene: Scene) -> Tensor:
    """Works in place on everything that it is given."""
    y.zero_()
    for part in (scene.time_s, scene.obstacles.vertices, scene.obstacles.radius, scene.obstacles.is_used):
        part.zero_()
    return distance(y)


def test_a_constraint_that_works_in_place_changes_nothing_for_the_others() -> None:
    there = disc(1.4, 0.2, 0.1).robots(torch.zeros(2).long())
    certifiers = [
        Certifier([*own, KeepOut(0.05), Box(-9.0, 1.32, Quantity("motion"))], PLANT, 0.1, Assumptions())
        for own in ([], [Own(spoil)])
    ]
    found = [one.certify(COMMANDS, START, there) for one in certifiers]
    assert 0 < int(found[0].length[0]) < 3
    torch.testing.assert_close(found[1].length, found[0].length)
    torch.testing.assert_close(found[1].margin, found[0].margin.clamp(max=1.0), rtol=0.0, atol=0.0)
    reference = COMMANDS.clone()
    own = Own(projected=lambda y: y.zero_())
    projected = prox_of(own, reference, Scene(there, torch.ones(3)))(reference)
    assert not bool(projected.any())
    torch.testing.assert_close(reference, COMMANDS, rtol=0.0, atol=0.0)


def fragile(y: Tensor, *_: object) -> Tensor:
    if bool((y[..., 0] >= 2.0).any()):
        raise ZeroDivisionError
    return distance(y)


def test_what_raises_for_one_robot_concerns_that_robot_only() -> None:
    scene = Scene(no_obstacles(2), torch.ones(3))
    assert margin_of(Own(fragile), COMMANDS, scene).tolist() == [[1.0] * 3, [-torch.inf] * 3]
    assert certify(Own(fragile)).length.tolist() == [3, 0]
    project = prox_of(Own(projected=lambda y: (fragile(y), 0.0 * y)[1]), COMMANDS, scene)
    torch.testing.assert_close(project(COMMANDS)[1], COMMANDS[1], rtol=0.0, atol=0.0)  # as it was
    assert not bool(project(COMMANDS)[0].any())
