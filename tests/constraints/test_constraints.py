"""Every constraint: its projection is one, its margin tells the truth and no more; each as plain numbers say."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from one_case import over

from diffpolicy.constraints.constraint import Constraint, Quantity, Scene
from diffpolicy.constraints.limits import Box, NormLimit, Polytope
from diffpolicy.constraints.planar.keep_out import BarrierDecrease, KeepOut
from diffpolicy.constraints.planar.obstacles import Obstacles, box, disc, no_obstacles, polygon, together
from diffpolicy.constraints.plant import State, position_servo
from diffpolicy.constraints.trajectory import Start, Trajectory

COMMANDS = Quantity("commands")
CORNER = [(1.0, 0.0), (0.0, 1.0)]
SKEWED = [(1.0, 0.0), (1.0, 0.2), (-0.3, 1.0)]


def of_all(inset: float) -> dict[str, Constraint]:
    """Every constraint; a new one inherits the tests below."""
    return {
        "box": Box([-2.0, -1.0], [1.0, 3.0], COMMANDS, inset),
        "box, one number": Box(-2.0, 2.0, Quantity("commands", 1), inset),
        "norm": NormLimit(2.0, Quantity("commands", 2), inset),
        "half-space": Polytope([(3.0, 4.0)], [5.0], COMMANDS, inset),
        "corner": Polytope(CORNER, [1.0, 2.0], COMMANDS, inset),
        "keep-out": KeepOut(0.3, 0.1, inset=inset),
        "keep-out of commands": KeepOut(0.0, acts_on="commands", inset=inset),
        "barrier": BarrierDecrease(0.3, 0.2, 0.1, inset=inset),
        "barrier, rate 1": BarrierDecrease(1.0, 0.3, inset=inset),
    }


EVERY_CONSTRAINT = list(of_all(0.0))
CASES, ROWS = 40, 6


def scene() -> Scene:
    parts = disc(1.0, 1.0, 0.5), box(-2.0, -2.0, -1.0, 0.0), polygon([(2.0, -2.0), (2.0, 2.0)]), disc(0, -2, 0.2, 0.1)
    one = together(parts).padded(5)
    return Scene(one.robots(torch.zeros(CASES, dtype=torch.long)), 0.1 * torch.arange(1, ROWS + 1, dtype=torch.float64))


def random_rows(constraint: Constraint, seed: int, copies: bool = False) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = [CASES, ROWS, 2]
    if constraint.quantity.segments:
        shape = [CASES, *([5] if copies else []), ROWS, 2, 2]
    return 4.0 * torch.randn(shape, generator=generator, dtype=torch.float64)


def farthest(y: torch.Tensor, constraint: Constraint) -> torch.Tensor:
    """[CASES, ROWS], by how much the rows differ; of a segment the end that differs more."""
    off = torch.linalg.vector_norm(y, dim=-1)
    return off.amax(-1) if constraint.quantity.segments else off


@over("inset", [0.0, 0.05])
@over("name", EVERY_CONSTRAINT)
def test_prox_is_a_projection(name: str, inset: float) -> None:
    constraint = of_all(inset)[name]
    prox = constraint.prox(random_rows(constraint, 0), scene())
    a, b = random_rows(constraint, 1, copies=True), random_rows(constraint, 2, copies=True)
    once, other = prox(a), prox(b)
    torch.testing.assert_close(prox(once), once, rtol=0.0, atol=1e-12)  # rounding of one more dot product
    dims = tuple(range(1, a.ndim))
    apart, before = (once - other).square().sum(dims), (a - b).square().sum(dims)
    assert bool((apart <= before * (1 + 1e-12)).all())
    # The nearest: from there, no feasible point lies in the direction of where it came from (Kolmogorov).
    assert bool((((a - once) * (other - once)).sum(dims) <= 1e-9).all())


@over("name", EVERY_CONSTRAINT)
def test_projected_rows_are_allowed_by_the_margin(name: str) -> None:
    """By obstacles one by one: each has a copy of the rows. A barrier below rate 1 is linear in the projection only."""
    constraint, around = of_all(0.0)[name], scene()
    projected = constraint.prox(random_rows(constraint, 0), around)(random_rows(constraint, 1, copies=True))
    if not constraint.quantity.segments:
        assert bool((constraint.margin(projected, around) >= -1e-12).all())
    elif getattr(constraint, "rate", 1.0) == 1.0:
        for slot in range(5):
            obstacles = around.obstacles
            alone = Obstacles(*(getattr(obstacles, part.name)[:, slot : slot + 1] for part in fields(obstacles)))
            y = projected[:, slot]
            if isinstance(constraint, BarrierDecrease):
                y = y[..., 1:, :].expand(-1, -1, 2, -1)  # it asks for nothing but a clear end
            assert bool((KeepOut(constraint.distance).margin(y, Scene(alone, around.time_s)) >= -1e-9).all())


@over("name", EVERY_CONSTRAINT)
def test_the_margin_of_rows_bounds_that_of_all_rows_near_them(name: str) -> None:
    """What the certificate needs of it: margin(other) >= margin(rows) - their difference, where that is below 0."""
    constraint, around = of_all(0.0)[name], scene()
    for seed, size in enumerate([1e-3, 0.1, 1.0, 5.0]):
        y = random_rows(constraint, seed)
        other = y + size * random_rows(constraint, 50 + seed)
        sure = constraint.margin(y, around) - farthest(other - y, constraint)
        found = constraint.margin(other, around)
        assert bool((found[sure >= 0] >= -1e-12).all())
        if not isinstance(constraint, KeepOut):  # which stops at a bound where it is clear anyway
            assert bool((found >= sure - 1e-12).all())


@over("name", EVERY_CONSTRAINT)
def test_nan_has_no_margin(name: str) -> None:
    constraint, around = of_all(0.0)[name], scene()
    y = random_rows(constraint, 0)
    y[0, 2] = float("nan")
    margin = constraint.margin(y, around)
    assert not bool(margin[0, 2] >= 0)
    assert not bool(margin[0].amin() >= 0)
    spoilt = replace(around.obstacles, vertices=around.obstacles.vertices * float("nan"))
    if constraint.quantity.segments:
        assert not bool((constraint.margin(random_rows(constraint, 1), Scene(spoilt, around.time_s)) >= 0).any())


NOTHING_AROUND = Scene(no_obstacles(1), torch.zeros(1, dtype=torch.float64))


def test_limits_by_hand() -> None:
    y = torch.tensor([[[0.5, 0.0], [3.0, 4.0], [-2.5, 0.0]]], dtype=torch.float64)
    for constraint, expected in [
        (Box([-2.0, -1.0], [1.0, 3.0], COMMANDS), [0.5, -2.0, -0.5]),
        (Box(-2.0, 2.0, COMMANDS), [1.5, -2.0, -0.5]),
        (NormLimit(4.5, COMMANDS), [4.0, -0.5, 2.0]),
        (Polytope([(3.0, 4.0)], [5.0], COMMANDS), [0.7, -4.0, 2.5]),
        (Polytope(SKEWED[:1], [1.0], COMMANDS), [0.5, -2.0, 3.5]),
    ]:
        found = constraint.margin(y, NOTHING_AROUND)
        torch.testing.assert_close(found[0], torch.tensor(expected, dtype=torch.float64), rtol=0.0, atol=1e-12)


def test_faces_that_meet_at_an_angle_are_met_by_projecting_again_and_again() -> None:
    wedge = Polytope(SKEWED, [0.0, 0.0, 0.0], COMMANDS)
    y = torch.randn(1, 50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    around = NOTHING_AROUND
    for _ in range(60):
        y = wedge.prox(y, around)(y)
    assert float(wedge.margin(y, around).amin()) >= -1e-9


def test_rows_of_commands_are_plain_differences_with_what_was_sent_before() -> None:
    generator = torch.Generator().manual_seed(0)
    past, commands = (torch.randn(2, n, 2, generator=generator, dtype=torch.float64) for n in (3, 5))
    nowhere = torch.full((2, 2), float("nan"), dtype=torch.float64)
    start = Start(State(nowhere, nowhere), past)
    path = np.concatenate([past.numpy(), commands.numpy()], axis=1)
    for order in range(4):
        signs = ([1], [1, -1], [1, -2, 1], [1, -3, 3, -1])[order]
        expected = sum(sign * path[:, 3 - k : 8 - k] for k, sign in enumerate(signs)) / 0.1**order
        found = Trajectory(commands, start, None, 0.1).quantity(Quantity("commands", order))
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-11, atol=1e-9)  # differences over 1e-3 s3
    trajectory = Trajectory(commands, start, None, 0.1)
    found = trajectory.quantity(Quantity("commands", segments=True))
    np.testing.assert_array_equal(found.numpy(), np.stack([path[:, 2:-1], path[:, 3:]], axis=2))
    np.testing.assert_allclose(trajectory.times_s(COMMANDS).numpy(), [0.1, 0.2, 0.3, 0.4, 0.5], rtol=1e-12)


@over("substeps", [1, 2, 5])
def test_rows_of_the_motion_are_differences_over_sub_steps_with_what_the_robot_did_before(substeps: int) -> None:
    """The robot comes from somewhere under its last commands; its past sub-steps are worked out backwards."""
    plant = position_servo(100.0, 20.0, 0.02, substeps)
    generator = torch.Generator().manual_seed(0)
    past, commands = (torch.randn(2, n, 2, generator=generator, dtype=torch.float64) for n in (3, 4))
    begin = State(*torch.randn(2, 2, 2, generator=generator, dtype=torch.float64))
    before, velocity = plant.motion(past, begin)
    now = State(before[:, -1], velocity[:, -1])
    after, after_velocity = plant.motion(commands, now)
    path = torch.cat([before, after], dim=1).numpy()
    start = Start(now, past)
    trajectory = Trajectory(commands, start, plant, plant.period_s)
    first = before.shape[1]
    for order in range(4):
        expected = np.diff(path, n=order, axis=1)[:, first - order :] / 0.02**order
        found = trajectory.quantity(Quantity("motion", order))
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-8, atol=1e-6)  # differences over 8e-6 s3
    found = trajectory.quantity(Quantity("motion", 1))
    np.testing.assert_allclose(found.numpy(), after_velocity.numpy(), rtol=0, atol=1e-9)  # semi-implicit Euler
    with pytest.raises(ValueError, match="needs a plant"):
        Trajectory(commands, start, None, 0.1).quantity(Quantity("motion"))


@over(
    "make, message",
    [
        (lambda: Box(1.0, -1.0, COMMANDS), "must not be above"),
        (lambda: Box([0.0, 2.0], [1.0, 1.0], COMMANDS), "must not be above"),
        (lambda: Box(float("nan"), 1.0, COMMANDS), "must not be above"),
        (lambda: Box(0.0, 1.0, COMMANDS, inset=0.6), "inset 0.6"),
        (lambda: Box(0.0, 1.0, COMMANDS, inset=float("nan")), "inset nan"),
        (lambda: Box(0.0, 1.0, COMMANDS, inset=-0.1), "inset -0.1"),
        (lambda: NormLimit(-1.0, COMMANDS), "limit: -1.0"),
        (lambda: NormLimit(0.0, COMMANDS), "above 0"),
        (lambda: NormLimit(float("nan"), COMMANDS), "finite"),
        (lambda: NormLimit(float("inf"), COMMANDS), "finite"),
        (lambda: Polytope([(0.0, 0.0)], [1.0], COMMANDS), "not zero"),
        (lambda: Polytope([(1.0, 0.0)], [float("nan")], COMMANDS), "finite"),
        (lambda: Polytope([(1.0, 0.0)], [1.0, 2.0], COMMANDS), r"offsets \[2\]"),
        (lambda: KeepOut(-0.1), "robot_radius -0.1"),
        (lambda: KeepOut(0.1, float("nan")), "clearance nan"),
        (lambda: KeepOut(float("inf")), "robot_radius inf"),
        (lambda: BarrierDecrease(0.0, 0.1), "rate 0.0"),
        (lambda: BarrierDecrease(1.1, 0.1), "rate 1.1"),
        (lambda: BarrierDecrease(0.5, float("nan")), "at least 0"),
        (lambda: BarrierDecrease(0.5, float("inf")), "at least 0"),
        (lambda: BarrierDecrease(0.5, -1.0, 2.0), "at least 0"),
        (lambda: Quantity("command"), "acts_on 'command'"),  # pyright: ignore[reportArgumentType]
        (lambda: Quantity("motion", 4), "order 4"),
        (lambda: Quantity("motion", 1, segments=True), "order 0, not 1"),
        (lambda: polygon([(0, 0), (1, 0), (0, 1), (1, 1)]), "convex"),
        (lambda: polygon([(0, 0), (4, 0), (4, 4), (1, 1), (0, 4)]), "convex"),
        (lambda: disc(0.0, float("nan"), 1.0), "finite"),
        (lambda: disc(0.0, 0.0, -1.0), "at least 0"),
        (lambda: disc(0.0, 0.0, 1.0, speed=-1.0), "at least 0"),
        (lambda: polygon([]), "convex"),
        (lambda: box(1.0, 0.0, 0.0, 1.0), "must not be above"),
        (lambda: disc(0.0, 0.0, 1.0).padded(0), "expected at most 0"),
    ],
)  # fmt: skip
def test_what_contradicts_itself_is_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@over(
    "now, is_within",
    [
        (disc(0.0, 0.0, 1.0), True),
        (disc(0.15, 0.0, 1.0), True),
        (disc(0.25, 0.0, 1.0), False),  # farther than 2 units/s in 0.1 s
        (disc(0.25, 0.0, 0.9), True),
        (disc(0.0, 0.0, 1.3), False),
        (disc(0.0, 0.0, 1.0, speed=3.0), False),
        (together([disc(0.0, 0.0, 1.0), disc(0.1, 0.0, 0.5)]), True),  # seen twice
        (together([disc(0.0, 0.0, 1.0), disc(5.0, 0.0, 0.5)]), False),  # one appears
        (no_obstacles(1), True),
        (polygon([(-0.5, 0.0), (0.5, 0.0)], radius=0.2), True),
        (polygon([(-2.5, 0.0), (0.5, 0.0)], radius=0.2), False),
    ],
)  # fmt: skip
def test_obstacles_keep_to_their_speed_or_do_not(now: Obstacles, is_within: bool) -> None:
    expected = disc(0.0, 0.0, 1.0, speed=2.0).moved_on(torch.tensor([0.1], dtype=torch.float64))
    assert bool(now.is_within(expected, tolerance=1e-9)) == is_within
    assert bool(now.is_within(no_obstacles(1), tolerance=1e-9)) == (now.slots == 0)


def test_obstacles_of_one_robot_are_replaced_whoever_has_more_corners() -> None:
    few, many = disc(1.0, 2.0, 0.5, speed=0.3), box(3.0, 3.0, 4.0, 5.0)
    y = torch.tensor([[[[0.0, 0.0], [6.0, 1.0]]]], dtype=torch.float64)
    for before, after in ((few, many), (many, few)):
        found = before.robots(torch.tensor([0, 0])).replaced(
            torch.tensor([[False], [True]]), after.robots(torch.zeros(2).long())
        )
        alone = torch.cat([KeepOut(0.1).margin(y, Scene(one, torch.ones(1).double())) for one in (before, after)])
        together_found = KeepOut(0.1).margin(y.repeat(2, 1, 1, 1), Scene(found, torch.ones(1).double()))
        torch.testing.assert_close(together_found, alone, rtol=0.0, atol=0.0)
        assert found.vertices.shape[2] == many.vertices.shape[2]
