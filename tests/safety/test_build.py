"""What is built from settings."""

import pytest
import torch
from one_case import over

from diffpolicy.constraints.certificate import Certifier
from diffpolicy.constraints.constraint import Scene
from diffpolicy.constraints.planar.obstacles import no_obstacles
from diffpolicy.constraints.plant import State
from diffpolicy.constraints.projector import Projector
from diffpolicy.constraints.trajectory import Start
from diffpolicy.safety import KeepOut, Quantity, Safety
from diffpolicy.safety.build import SafetyConfig, build_safety

TICKS = 8


def moving(px_a_tick: float, ticks: int) -> torch.Tensor:
    """Commands [1, ticks, 2] along x, from 100 on."""
    along = px_a_tick * torch.arange(1, ticks + 1)
    return 100.0 + torch.stack([along, torch.zeros(ticks)], dim=-1)[None]


@over(
    "errors, px_a_tick",
    [({}, 30.0), ({"velocity_error": 30.0}, 30.0), ({"delay_substeps": 3}, 20.0), ({"delay_substeps": 10}, 20.0)],
)
def test_a_plan_that_is_too_fast_is_slowed_until_it_is_certified_with_the_errors_that_are_declared(
    errors: dict, px_a_tick: float
) -> None:
    safety = build_safety(SafetyConfig(mode="last", workspace=[0.0, 1000.0], max_speed=250.0, **errors))
    assert safety is not None
    here, slow = torch.full((1, 2), 100.0), torch.tensor([[150.0, 0.0]])
    start = Start(State(here, slow), here[:, None] + slow / 10.0 * torch.arange(-2, 1)[:, None])
    plan = moving(px_a_tick, TICKS)
    projector = Projector(safety.constraints, safety.plant, safety.tick_s, TICKS, torch.ones(2) / 200.0**2, 1)
    slowed = projector.polish(plan, projector.task(start, no_obstacles(1)), 10, 8, 0.1)
    certifier = Certifier(safety.constraints, safety.plant, safety.tick_s, safety.assumptions)
    assert int(certifier.certify(plan, start, no_obstacles(1)).length) < TICKS
    assert int(certifier.certify(slowed, start, no_obstacles(1)).length) == TICKS
    assert float(slowed[0, -1, 0]) > 200.0  # and it still gets on


def test_without_errors_the_projection_aims_two_percent_below_the_limit() -> None:
    safety = build_safety(SafetyConfig(mode="last", max_speed=250.0))
    assert safety is not None
    fast = torch.tensor([[[1000.0, 0.0]]])
    (limit,) = (one for one in safety.constraints if one.quantity.order == 1)
    scene = Scene(no_obstacles(1), torch.zeros(1))
    assert float(limit.prox(fast, scene)(fast)[0, 0, 0]) == pytest.approx(245.0)


class WithoutMargin:
    quantity = Quantity("commands")

    def prox(self, reference, scene):
        return lambda y: y


@pytest.mark.parametrize(
    ("constraints", "message"),
    [
        (KeepOut(15.0), "constraints is a KeepOut, expected a list of constraints"),
        (
            [KeepOut(15.0), WithoutMargin()],
            r"constraints\[1\] is a WithoutMargin without margin, expected",
        ),
        ([KeepOut], r"constraints\[0\] is the class KeepOut without quantity, expected"),
    ],
)
def test_what_is_no_constraint_is_refused_where_it_is_declared(constraints, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Safety(constraints)
