"""Which of several certified samples is taken."""

import torch
from one_case import over
from world import PERIOD_S, PLANT, both, safety

from diffpolicy.constraints.certificate import Certificate
from diffpolicy.constraints.planar.keep_out import KeepOut
from diffpolicy.constraints.planar.obstacles import Obstacles, disc, no_obstacles
from diffpolicy.constraints.plant import State
from diffpolicy.constraints.projector import Projector
from diffpolicy.constraints.trajectory import Start
from diffpolicy.safety.layer import SafetyLayer
from diffpolicy.safety.projection import SafetyProjection
from diffpolicy.safety.samples import Samples


def certified(rows: list[int]) -> Certificate:
    length = torch.tensor(rows)
    nothing = torch.zeros(len(rows), 1, 1, 1)
    return Certificate(length, nothing[:, :, 0, 0], nothing)


def test_certified_rows_count_most_then_whether_they_lead_on_then_how_little_they_were_moved() -> None:
    rising = [(1, True, 0.0), (2, False, 9.0), (2, False, 0.1), (2, True, 0.5), (2, True, 0.0), (3, False, 5.0)]
    rows, leads_on, shift = zip(*rising, strict=True)
    samples = Samples(torch.zeros(len(rows), 2, 1), torch.tensor(shift), torch.tensor(leads_on))
    worth = samples.worth(certified(list(rows)))
    assert (worth.diff() > 0).all()


@over(
    "obstacles, is_open, is_moved",
    [
        (no_obstacles(2), True, False),
        (disc(9.0, 2.0, 0.5), False, False),
        (disc(9.0, 2.0, 0.5, speed=1.0), False, False),
        (disc(9.0, 4.0, 0.5, speed=1.0), True, False),
        (disc(4.0, 2.0, 0.5), None, True),
    ],
)
def test_a_plan_knows_whether_it_leads_on_and_how_far_it_was_moved(
    obstacles: Obstacles, is_open: bool | None, is_moved: bool
) -> None:
    """Ten rows along x, from 2 to 6; straight on, they would come to 10."""
    demanded = safety([KeepOut(0.2, acts_on="commands")], mode="last", candidates=2)
    metric = torch.full((2,), 0.04)
    projector = Projector(demanded.constraints, PLANT, PERIOD_S, 10, metric, demanded.all_slots)
    at = torch.full((2, 2), 2.0, dtype=torch.float64)
    start = Start(State(at, torch.zeros_like(at)), at[:, None].repeat(1, 3, 1))
    there = both(obstacles) if len(obstacles.radius) == 1 else obstacles
    projection = SafetyProjection(demanded, projector, projector.task(start, there.padded(6)), present=0, steps=0)
    x = torch.linspace(2.4, 6.0, 10).expand(2, -1)
    plan = torch.stack([x, torch.full_like(x, 2.0)], dim=-1)
    assert (projection.project(plan, None, step=0) is plan) != is_moved
    assert (projection.shift > 0.02).tolist() == [is_moved] * 2
    if is_open is not None:
        assert projection.is_open.tolist() == [is_open] * 2


def test_a_layer_serves_again_only_for_the_same_demands_robots_and_device() -> None:
    demanded, metric = safety([KeepOut(0.2)]), torch.full((2,), 0.04)
    layer = SafetyLayer(demanded, 2, 10, 4, metric)
    assert layer.serves(demanded, 2, metric.clone())
    others = [(safety([KeepOut(0.2)]), 2, metric), (demanded, 3, metric), (demanded, 2, 2 * metric)]
    assert not any(layer.serves(*other) for other in others)
    assert not layer.serves(demanded, 2, metric.to("meta"))
