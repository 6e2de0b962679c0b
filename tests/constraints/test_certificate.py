"""Certificates against dense sampling of everything they promise; see dense_sampling.py and certified_cases.py."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from certified_cases import (
    ROBOTS,
    ROUNDING,
    SERVOS,
    Robots,
    constraints_of,
    obstacles_of,
    outcome,
    plant_of,
    random_robots,
    start_of,
)
from dense_sampling import Demands, Servo, Solids, violation
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from one_case import over

from diffpolicy.constraints.assumptions import Assumptions
from diffpolicy.constraints.certificate import Certifier
from diffpolicy.constraints.constraint import Quantity, Scene
from diffpolicy.constraints.limits import Box, NormLimit
from diffpolicy.constraints.planar.keep_out import BarrierDecrease, KeepOut
from diffpolicy.constraints.planar.obstacles import Obstacles, box, disc, no_obstacles, polygon
from diffpolicy.constraints.plant import State
from diffpolicy.constraints.trajectory import Start

SEEDS = st.integers(0, 2**32 - 1)
BATCHES = settings(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
SERVO = SERVOS[0]
PLANT = plant_of(SERVO)
EXACT = Assumptions(rest_speed=0.05)


def at_rest(x: float, y: float, velocity: tuple[float, float] = (0.0, 0.0)) -> Start:
    here = torch.tensor([[x, y]], dtype=torch.float64)
    moving = torch.tensor([velocity], dtype=torch.float64)
    return Start(State(here, moving), here[:, None].repeat(1, 3, 1))


def line(start: tuple[float, float], end: tuple[float, float], rows: int) -> torch.Tensor:
    share = torch.linspace(0.0, 1.0, rows + 1, dtype=torch.float64)[1:, None]
    return (torch.tensor(start).double() + share * (torch.tensor(end).double() - torch.tensor(start).double()))[None]


def certify(constraints, commands, start, obstacles: Obstacles, assumptions: Assumptions = EXACT, plant=PLANT):
    return Certifier(constraints, plant, SERVO.substeps * SERVO.substep_s, assumptions).certify(
        commands, start, obstacles
    )


def test_a_robot_counts_as_at_rest_only_where_its_whole_sub_step_is_slow() -> None:
    """Its measured velocity of 0 may be 15 off; rest begins where what may be left of that is below rest_speed."""
    servo = SERVO
    assumed = Assumptions(velocity_error=15.0, rest_speed=5.0)
    start, hold = at_rest(0.0, 0.0), torch.zeros(1, 1, 2)
    position_tube, velocity_tube = assumed.tubes(PLANT, hold.double(), start)
    slow = int((velocity_tube[0] > 5.0).sum())  # sub-steps that end faster; the one after them begins faster
    assert 0 < slow < servo.substeps - 1
    reach = 100.0 * servo.substep_s * (slow + 1) + float(position_tube[0, : slow + 1].max())
    for gap, is_safe in ((reach - 0.01, False), (reach + 0.01, True)):
        found = certify([KeepOut(0.0)], hold, start, disc(gap + 1.0, 0.0, 1.0, speed=100.0), assumed)
        assert bool(found.can_stop) == is_safe


@settings(BATCHES, max_examples=2000 // ROBOTS)
@given(seed=SEEDS)
@example(seed=265740459)  # within a segment, the larger error of its two ends counts
def test_what_is_certified_never_violates_2000_cases(seed: int) -> None:
    assert outcome(seed).worst <= ROUNDING


@pytest.mark.slow
@settings(BATCHES, max_examples=100_000 // ROBOTS)
@given(seed=SEEDS)
def test_what_is_certified_never_violates_100000_cases(seed: int) -> None:
    assert outcome(seed).worst <= ROUNDING


def test_the_random_cases_are_neither_all_certified_nor_all_refused() -> None:
    shares = [(found.length == found.rows).mean() for found in (outcome(seed) for seed in range(4))]
    assert 0.2 < np.mean(shares) < 0.9


@over("servo", SERVOS)
def test_plans_that_violate_by_themselves_are_not_certified(servo: Servo) -> None:
    """The converse on plans, without a way to stop: a third or so drive into something, and none of them pass."""
    demands = Demands(speed=4.0, distance=0.3)
    robots = random_robots(np.random.default_rng(3), EXACT, servo)
    n = robots.commands.shape[1]
    over = violation(
        demands, servo.substeps * servo.substep_s, servo, robots.solids, robots.history, robots.commands,
        servo.held(robots.commands, n), robots.position, robots.velocity,
    )  # fmt: skip
    certifier = Certifier(constraints_of(demands), plant_of(servo), servo.substeps * servo.substep_s, EXACT)
    found = certifier.certify(torch.as_tensor(robots.commands), start_of(robots), obstacles_of(robots.solids))
    violates = over > ROUNDING
    assert 0.1 < violates.mean() < 0.9
    assert not (found.length.numpy()[violates] == n).any()
    assert (found.length.numpy()[~violates] == n).mean() > 0.3


def test_the_oracle_sees_a_certificate_that_is_off_by_a_hundredth(monkeypatch) -> None:
    margin = KeepOut.margin
    monkeypatch.setattr(KeepOut, "margin", lambda self, y, scene: margin(self, y, scene) + 0.01)
    assert max(outcome(seed).worst for seed in (6, 7)) > 1e-3


def test_a_robot_that_starts_inside_an_obstacle_may_do_nothing() -> None:
    found = certify([KeepOut(0.3)], line((1.0, 0.0), (1.5, 0.0), 4), at_rest(1.0, 0.0), disc(1.0, 0.2, 0.1))
    assert int(found.length) == 0
    assert not bool(found.can_stop)


def test_a_thin_wall_between_two_waypoints_is_seen() -> None:
    jump = torch.tensor([[[4.0, 0.0]]], dtype=torch.float64)
    wall = polygon([(2.0, -5.0), (2.0, 5.0)])
    for acts_on in ("commands", "motion"):
        found = certify([KeepOut(0.0, acts_on=acts_on)], jump, at_rest(0.0, 0.0), wall)
        assert int(found.length) == 0
        assert bool(found.can_stop)
    free = certify([KeepOut(0.0)], jump, at_rest(0.0, 0.0), polygon([(5.0, -5.0), (5.0, 5.0)]))
    assert int(free.length) == 1


def test_a_row_whose_way_to_stop_is_blocked_is_not_sent() -> None:
    """Four rows at constant speed; the motion lags and is clear within the plan, but held targets lie in the wall."""
    commands = line((0.0, 0.0), (2.0, 0.0), 4)
    wall = box(1.8, -1.0, 3.0, 1.0)
    reached, _ = PLANT.motion(commands, at_rest(0.0, 0.0).state)
    assert float(reached[..., 0].max()) < 1.8
    found = certify([KeepOut(0.0)], commands, at_rest(0.0, 0.0), wall)
    assert int(found.length) == 3


def test_without_a_rest_speed_nothing_is_excused_near_what_moves() -> None:
    """The default has no units to go by: a robot in metres may drive at 0.8 m/s."""
    commands, moving = line((1.0, 0.0), (1.32, 0.0), 4), disc(1.3, 0.0, 0.1, speed=0.1)
    found = certify([KeepOut(0.1)], commands, at_rest(1.0, 0.0), moving, Assumptions())
    assert int(found.length) == 0
    assert int(certify([KeepOut(0.1)], commands, at_rest(1.0, 0.0), disc(3.0, 0.0, 0.1), Assumptions()).length) == 4


def test_a_moving_obstacle_is_expected_wherever_it_can_be_until_the_robot_stands() -> None:
    commands = line((0.0, 0.0), (1.0, 0.0), 4)
    slow, fast = (disc(3.5, 0.0, 0.2, speed=speed) for speed in (0.5, 4.0))
    assert int(certify([KeepOut(0.3)], commands, at_rest(0.0, 0.0), slow).length) == 4
    fast_found = certify([KeepOut(0.3)], commands, at_rest(0.0, 0.0), fast)
    assert int(fast_found.length) < 4
    assert bool(fast_found.can_stop)  # it stands already


def test_a_robot_that_stands_inside_a_moving_obstacle_is_not_excused_at_the_present() -> None:
    """Later it is: an obstacle that comes is not the robot's fault."""
    commands = line((0.0, 0.0), (0.0, 0.0), 3)
    for x, is_clear in ((0.0, False), (0.55, False), (0.65, True)):
        found = certify([KeepOut(0.1)], commands, at_rest(0.0, 0.0), disc(x, 0.0, 0.5, speed=1.0))
        assert int(found.length) == (3 if is_clear else 0)
        assert bool(found.can_stop) == is_clear
        assert float(found.margin.amax()) == pytest.approx(x - 0.6) or is_clear
    uncertain = Assumptions(position_error=0.1, rest_speed=0.05)
    assert not bool(certify([KeepOut(0.1)], commands, at_rest(0.0, 0.0), disc(0.65, 0.0, 0.5, 1.0), uncertain).can_stop)


NAN = float("nan")


@over("constraints", [[], [Box(-9.0, 9.0, Quantity("commands"))], [KeepOut(0.1)], [KeepOut(0.1, acts_on="commands")]])
@over("bad", ["command", "position", "velocity", "history"])
def test_nan_never_passes(constraints, bad: str) -> None:
    start, commands = at_rest(0.0, 0.0), line((0.0, 0.0), (0.5, 0.0), 3)
    assert int(certify(constraints, commands, start, no_obstacles(1)).length) == 3
    if bad == "command":
        commands[0, 1, 0] = NAN
    spoilt = {"position": start.state.position, "velocity": start.state.velocity, "history": start.commands}
    if bad in spoilt:
        spoilt[bad][..., -1, 0] = NAN
    found = certify(constraints, commands, start, no_obstacles(1))
    assert int(found.length) == (1 if bad == "command" else 0)
    assert bool(found.can_stop) == (bad == "command")


@over("constraints", [[], [KeepOut(0.1)], [BarrierDecrease(0.5, 0.1)]])
@over(
    "part, value",
    [("vertices", NAN), ("vertices", float("inf")), ("radius", NAN), ("radius", -0.1), ("speed", NAN), ("speed", -1.0)],
)
def test_obstacles_that_cannot_be_are_never_clear(constraints, part: str, value: float) -> None:
    far = disc(50.0, 50.0, 1.0)
    spoilt = replace(far, **{part: getattr(far, part) * 0.0 + value})
    commands = line((0.0, 0.0), (0.5, 0.0), 3)
    found = certify(constraints, commands, at_rest(0.0, 0.0), spoilt)
    assert int(found.length) == 0
    assert not bool(found.can_stop)
    unused = replace(spoilt, is_used=torch.zeros(1, 1, dtype=torch.bool))
    assert int(certify(constraints, commands, at_rest(0.0, 0.0), unused).length) == 3


@over("assumed", [EXACT, Assumptions(0.05, 0.2, rest_speed=0.05, delay_substeps=4)])
def test_a_robot_is_certified_alike_alone_and_among_others(assumed: Assumptions) -> None:
    demands = Demands(workspace=(0.5, 9.5), command_acceleration=40.0, distance=0.3)
    robots = random_robots(np.random.default_rng(0), assumed, SERVO)
    start, obstacles = start_of(robots), obstacles_of(robots.solids)
    found = certify(constraints_of(demands), torch.as_tensor(robots.commands), start, obstacles, assumed)
    for index in range(0, ROBOTS, 7):
        one = torch.tensor([index])
        commands = torch.as_tensor(robots.commands)[one]
        alone = certify(constraints_of(demands), commands, start.robots(one), obstacles.robots(one), assumed)
        assert int(alone.length) == int(found.length[index])
        # The matrix products round by their shape: 1e-12 of coordinates of 10.
        torch.testing.assert_close(alone.margin, found.margin[one], rtol=0.0, atol=1e-11)
        torch.testing.assert_close(alone.stops, found.stops[one], rtol=0.0, atol=0.0)


def test_ways_to_stop_are_commands_as_they_are_sent() -> None:
    """In float32: nothing rounds them after the certificate."""
    commands = line((0.0, 0.0), (0.1, 0.3), 3)
    found = certify([NormLimit(40.0, Quantity("commands", 2))], commands, at_rest(0.0, 0.0), no_obstacles(1))
    torch.testing.assert_close(found.stops, found.stops.float().double(), rtol=0.0, atol=0.0)


def test_a_brake_keeps_to_the_limit_of_acceleration() -> None:
    """At 5 units/s, to hold at once takes 50 units/s2."""
    start = at_rest(0.0, 0.0, velocity=(5.0, 0.0))
    moving = torch.tensor([[[-1.5, 0.0], [-1.0, 0.0], [-0.5, 0.0]]], dtype=torch.float64)
    start = Start(start.state, moving)
    commands = line((-0.5, 0.0), (1.5, 0.0), 4)
    for limit, ticks in ((51.0, 1), (26.0, 2), (10.1, 5)):
        found = certify([NormLimit(limit, Quantity("commands", 2))], commands, start, no_obstacles(1))
        assert int(found.length) == 4
        steps = torch.cat([commands[:, -2:], found.stops[:, -1]], dim=1).diff(dim=1)[0, :, 0]
        assert int((steps > 1e-5).sum()) >= ticks
    assert int(certify([NormLimit(5.0, Quantity("commands", 2))], commands, start, no_obstacles(1)).length) == 0


class Floor:
    """A user's own constraint: every executed position at or above `y`."""

    quantity = Quantity("motion")

    def __init__(self, y: float) -> None:
        self.y = y

    def prox(self, reference, scene: Scene):
        low = torch.tensor([-torch.inf, self.y]).to(reference)
        return lambda y: torch.maximum(y, low)

    def margin(self, y, scene: Scene):
        return y[..., 1] - self.y


def test_a_users_own_constraint_is_certified() -> None:
    down = line((0.0, 1.0), (0.0, -0.5), 3)
    assert int(certify([Floor(0.4)], down, at_rest(0.0, 1.0), no_obstacles(1)).length) == 1
    assert int(certify([Floor(-0.6)], down, at_rest(0.0, 1.0), no_obstacles(1)).length) == 3


def test_what_cannot_be_promised_is_refused() -> None:
    inexact = Assumptions(position_error=0.1)
    with pytest.raises(ValueError, match="needs a plant"):
        Certifier([KeepOut(0.1)], None, 0.1, EXACT)
    with pytest.raises(ValueError, match="a limit of order 2 on the motion needs an exact state"):
        Certifier([NormLimit(1.0, Quantity("motion", 2))], PLANT, 0.1, inexact)
    with pytest.raises(ValueError, match="delay_substeps 16 must be at most 15, 3 ticks"):
        Certifier([KeepOut(0.1)], PLANT, 0.1, Assumptions(delay_substeps=16))


def test_an_overshoot_of_what_is_left_at_the_end_counts() -> None:
    """A lightly damped robot swings past a held target long after the rows that are looked at one by one."""
    servo = Servo(100.0, 2.0, 0.02, 5)
    solids = Solids(np.zeros((1, 1, 1, 2)), np.zeros((1, 1)), np.zeros((1, 1)), np.ones((1, 1), dtype=bool))
    for end in np.linspace(-0.8, -0.2, 61):
        commands = np.array([[[end, 0.0]]], dtype=np.float32).astype(np.float64)
        begin = np.array([[-1.0, 0.0]])
        robots = Robots(begin[:, None].repeat(3, 1), commands, begin, 0 * begin, begin, 0 * begin, solids)
        certifier = Certifier([KeepOut(0.1)], plant_of(servo), 0.1, EXACT)
        found = certifier.certify(torch.as_tensor(commands), start_of(robots), obstacles_of(solids))
        path, _ = servo.motion(servo.held(commands, 200), begin, 0 * begin)
        if int(found.length):
            assert path[..., 0].max() <= -0.1 + ROUNDING
