"""Regions of any shape: seen along whole segments, however far a row moves."""

import numpy as np
import pytest
import torch
from one_case import over
from torch import Tensor

from diffpolicy.constraints.assumptions import Assumptions
from diffpolicy.constraints.certificate import Certifier
from diffpolicy.constraints.constraint import Quantity, Scene
from diffpolicy.constraints.planar.obstacles import no_obstacles
from diffpolicy.constraints.plant import State, position_servo
from diffpolicy.constraints.projector import Projector
from diffpolicy.constraints.region import PIECES, Region
from diffpolicy.constraints.trajectory import Start

SERVO = position_servo(400.0, 36.0, 0.02, 5)
STEP = 120.0


def from_bean(points: Tensor) -> Tensor:
    """Distance from two discs that overlap; not convex."""
    centers = points.new_tensor([[0.0, 12.0], [0.0, -12.0]])
    return ((points[..., None, :] - centers).square().sum(-1) + 1e-12).sqrt().amin(-1) - 15.0


class Points:
    """The same region as a constraint on points."""

    quantity = Quantity("commands")

    def prox(self, reference: Tensor, scene: Scene):
        return lambda y: y

    def margin(self, y: Tensor, scene: Scene) -> Tensor:
        return from_bean(y)


def certified(constraint, commands: np.ndarray) -> int:
    path = torch.as_tensor(commands)[None]
    state = State(path[:, 0], 0 * path[:, 0])
    certifier = Certifier([constraint], SERVO, 0.1, Assumptions())
    return int(certifier.certify(path[:, 1:], Start(state, path[:, :1].repeat(1, 3, 1)), no_obstacles(1)).length)


def test_what_tunnels_through_a_constraint_on_points_is_seen_by_a_region() -> None:
    through = 0
    for offset in np.linspace(0.0, STEP, 21):
        x = np.arange(-4.0, 5.0) * STEP + offset
        commands = np.stack([x, 0 * x], 1)
        through += certified(Points(), commands) == 8
        assert certified(Region(from_bean, acts_on="commands"), commands) < 8
        assert certified(Region(from_bean), commands) < 8
    assert through > 10


@over("clearance", [0.0, 3.0])
def test_a_margin_is_at_most_the_nearest_point_of_a_segment_and_nearly_that(clearance: float) -> None:
    rng = np.random.default_rng(0)
    y = torch.as_tensor(rng.uniform(-60.0, 60.0, (50, 4, 2, 2)))
    share = torch.linspace(0.0, 1.0, 1001, dtype=torch.float64)[:, None]
    exact = from_bean(y[..., :1, :] + share * (y[..., 1:, :] - y[..., :1, :])).amin(-1) - clearance
    found = Region(from_bean, clearance).margin(y, Scene(no_obstacles(50), torch.ones(4)))
    piece = (y[..., 1, :] - y[..., 0, :]).norm(dim=-1) / PIECES
    assert bool((found <= exact + 1e-9).all())
    assert bool((found >= exact - 0.5 * piece - 1e-9).all())


def test_a_plan_past_a_region_is_projected_to_what_is_certified() -> None:
    region = Region(from_bean, clearance=1.0, inset=2.0)
    x = torch.arange(-100.0, 60.0, 10.0)
    plan = torch.stack([x, torch.full_like(x, 20.0)], -1)[None]
    state = State(torch.tensor([[-110.0, 20.0]]).double(), torch.zeros(1, 2).double())
    start = Start(state, state.position[:, None].repeat(1, 3, 1))
    projector = Projector([region], SERVO, 0.1, len(x), torch.ones(2), slots=0)
    with torch.inference_mode():
        projected = projector.polish(plan, projector.task(start, no_obstacles(1)), 10, 30, 0.05)
    certifier = Certifier([region], SERVO, 0.1, Assumptions())
    assert int(certifier.certify(plan, start, no_obstacles(1)).length) < len(x)
    assert int(certifier.certify(projected, start, no_obstacles(1)).length) == len(x)


def test_numbers_below_zero_are_refused() -> None:
    with pytest.raises(ValueError, match="clearance -1"):
        Region(from_bean, clearance=-1.0)
