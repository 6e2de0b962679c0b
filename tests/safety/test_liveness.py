"""Robots get on where they may, and it is told where they do not."""

import numpy as np
import torch
from one_case import over
from world import BEGIN, DISC, PERIOD_S, PLANT, RADIUS, both, safety, start

from diffpolicy.constraints.assumptions import Assumptions
from diffpolicy.constraints.certificate import Certifier
from diffpolicy.constraints.constraint import Constraint, Quantity
from diffpolicy.constraints.limits import Box, NormLimit
from diffpolicy.constraints.planar.keep_out import KeepOut
from diffpolicy.constraints.planar.obstacles import disc, no_obstacles
from diffpolicy.constraints.plant import State
from diffpolicy.constraints.trajectory import Start
from diffpolicy.safety.layer import SafetyLayer
from diffpolicy.safety.samples import Samples
from diffpolicy.safety.surroundings import Surroundings

N, HORIZON = 4, 6


def state_at(x: float, y: float = 2.0) -> State:
    here = torch.tensor([[x, y]], dtype=torch.float64)
    return State(here, torch.zeros_like(here))


def plan_from(x: float, step: float, y: float = 2.0) -> Samples:
    along = x + step * torch.arange(1.0, HORIZON + 1)
    return Samples(torch.stack([along, torch.full_like(along, y)], -1)[None], torch.zeros(1), torch.ones(1).bool())


def layer(constraints: list[Constraint], assumptions: Assumptions | None = None) -> SafetyLayer:
    demanded = safety(constraints, mode="none", assumptions=assumptions or Assumptions(rest_speed=0.05))
    return SafetyLayer(demanded, 1, HORIZON, N, torch.full((2,), 0.04))


@over("order, limit", [(1, 10.0), (2, 100.0)])
@over("excess, share", [(1.0001, 0.97), (1.2, 0.8), (1.5, 0.6), (4.5, 0.2)])
def test_a_plan_beyond_a_limit_on_commands_is_followed_in_smaller_steps(order, limit, excess, share) -> None:
    at_limit = limit * PERIOD_S**order
    one, robots = layer([NormLimit(limit, Quantity("commands", order))]), torch.tensor([0])
    one.observe(Surroundings(state_at(2.0), no_obstacles(1)))
    chunks = one.settle(one.consider(robots, plan_from(2.0, excess * at_limit)))
    report = one.sent(chunks[:, 0])
    assert report.rung.tolist() == ["slower"]
    assert report.certified.all()
    expected = 2.0 + share * excess * at_limit * np.arange(1, N + 1)
    np.testing.assert_allclose(chunks[0, :, 0], expected, rtol=1e-5)


def test_a_policy_whose_plans_all_exceed_a_limit_gets_on(small_policy) -> None:
    for limit in (3.0, 6.0):
        controller, world = start(small_policy, safety([NormLimit(limit, Quantity("commands", 1))], mode="last"))
        world.run(controller, 24, lambda tick: None)
        assert np.abs(world.position - BEGIN).max(1).min() > 1.0
        steps = np.diff(np.stack([BEGIN, *world.actions]), axis=0) / PERIOD_S
        assert np.linalg.norm(steps, axis=-1).max() <= limit + 1e-5  # float32
        assert world.certified.all()


INSIDE = 1e-5
WALLS = {
    "obstacle": ([KeepOut(RADIUS)], disc(1.0, 2.0, 0.8)),
    "box": ([Box([2.0, -9.0], [9.0, 9.0], Quantity("motion"))], no_obstacles(1)),
}


@over("wall", [*WALLS])
@over("depth, may", [(INSIDE, True), (9e-4, True), (2e-3, False), (0.1, False)])
def test_a_robot_hardly_inside_a_limit_may_stand_or_leave_but_get_no_deeper(wall: str, depth: float, may: bool) -> None:
    constraints, there = WALLS[wall]
    state = state_at(2.0 - depth)
    begin = Start(state, state.position[:, None].repeat(1, 3, 1))
    certifier = Certifier(constraints, PLANT, PERIOD_S, Assumptions(rest_speed=0.05))
    for step, is_good in ((0.3, True), (1e-3, True), (0.0, True), (-1e-3, False), (-0.3, False)):
        found = certifier.certify(plan_from(2.0 - depth, step).plans[:, :N], begin, there)
        assert (int(found.length) == N) == (is_good and may), (step, found.margin)
        assert bool(found.can_stop) == may
    unsure = Certifier(constraints, PLANT, PERIOD_S, Assumptions(position_error=1e-4, rest_speed=0.05))
    assert not bool(unsure.certify(plan_from(2.0 - depth, 0.3).plans[:, :N], begin, there).can_stop)


def test_a_robot_hardly_inside_a_moving_obstacle_may_stand() -> None:
    state = state_at(2.0 - INSIDE)
    begin = Start(state, state.position[:, None].repeat(1, 3, 1))
    certifier = Certifier([KeepOut(RADIUS)], PLANT, PERIOD_S, Assumptions(rest_speed=0.05))
    hold = plan_from(2.0 - INSIDE, 0.0).plans[:, :N]
    for x, is_certified in ((1.0, True), (1.01, False)):
        found = certifier.certify(hold, begin, disc(x, 2.0, 0.8, speed=0.01))
        assert bool(found.can_stop) == is_certified


def test_a_robot_that_stands_by_a_wall_is_not_alarmed_by_errors_within_their_bounds() -> None:
    """Certified once; afterwards every measurement makes it look nearer than it could be certified."""
    assumed = Assumptions(position_error=0.02, velocity_error=0.05, rest_speed=0.1)
    one, robots, rng = layer([KeepOut(RADIUS)], assumed), torch.tensor([0]), np.random.default_rng(0)
    wall, x = disc(1.0, 2.0, 0.8), 2.0 + 0.025  # certified from where it is, not from 0.02 nearer
    chunk = np.zeros((1, N, 2), dtype=np.float32)
    for tick in range(80):
        state = state_at(x)
        if tick:
            angle = rng.uniform(0.6 * np.pi, 1.4 * np.pi)
            state.position[0] += 0.02 * torch.tensor([np.cos(angle), np.sin(angle)])
            state.velocity[0] += 0.05 * torch.tensor([np.cos(angle), np.sin(angle)])
        one.observe(Surroundings(state, wall))
        is_due = tick % N == 0
        chunk = one.settle(one.consider(robots, plan_from(x, 0.0))) if is_due else one.check(robots, chunk)
        report = one.sent(chunk[:, 0])
        np.testing.assert_allclose(chunk[0, 0], [x, 2.0], rtol=1e-6)
        assert report.certified.all()
        assert not report.alarm.any()


@over("jitter_s", [1e-5, 3e-4])
def test_a_clock_that_jitters_stops_no_plan(small_policy, jitter_s: float) -> None:
    rng, runs = np.random.default_rng(0), []
    for jitter in (0.0, jitter_s):
        controller, world = start(small_policy, safety([KeepOut(RADIUS, inset=0.05)]))
        for tick in range(24):
            late = jitter * rng.uniform(-1, 1)
            world.run(controller, 1, lambda tick: both(DISC), time_s=7.0 + PERIOD_S * tick + late)
        runs.append(world)
    assert runs[1].rungs == runs[0].rungs
    np.testing.assert_array_equal(np.stack(runs[1].actions), np.stack(runs[0].actions))


def test_a_robot_that_gets_nowhere_is_told_from_one_that_wants_to_stand() -> None:
    constraints, wall, robots = [KeepOut(RADIUS)], disc(1.0, 2.0, 0.8), torch.tensor([0])
    for step, ticks in ((-0.3, 3 * N), (0.0, 0)):
        one, chunk = layer(constraints), np.zeros((1, N, 2), dtype=np.float32)
        for tick in range(3 * N):
            one.observe(Surroundings(state_at(2.0), wall))
            is_due = tick % N == 0
            chunk = one.settle(one.consider(robots, plan_from(2.0, step))) if is_due else one.check(robots, chunk)
            report = one.sent(chunk[:, 0])
        assert report.stuck_ticks.tolist() == [ticks]
        assert not report.alarm.any()
