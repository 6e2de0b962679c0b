"""No adversary gets a certified robot across a limit; and the benchmark that says so can tell.

The safety layer is attacked in every scenario of scripts/benchmark_adversary.py, for a few ticks each.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from one_case import over

from diffpolicy.benchmarks.adversary import trial
from diffpolicy.benchmarks.adversary.demands import Limits, rests
from diffpolicy.benchmarks.adversary.policy import KINDS
from diffpolicy.benchmarks.adversary.scenario import Scenario
from diffpolicy.benchmarks.adversary.scenarios import NOISY, QUICK, SCENARIOS, SHIPPED, SMOOTH, SPRINGY, STIFF
from diffpolicy.benchmarks.adversary.servo import MS, Servo
from diffpolicy.benchmarks.adversary.solids import Solids
from diffpolicy.benchmarks.adversary.world import World
from diffpolicy.constraints.assumptions import Assumptions
from diffpolicy.constraints.plant import State

SERVOS = [SHIPPED, SMOOTH, STIFF, SPRINGY, QUICK]
STRAIGHT = Limits(distance=2.0, speed=100.0, acceleration=10.0, workspace=(0.0, 100.0), beside=(1.0, 0.0, 90.0))


@pytest.mark.parametrize("name", SCENARIOS)
def test_no_adversary_breaks_a_limit_in_a_certified_tick(name: str) -> None:
    tally = trial.Trial(SCENARIOS[name], robots=2 * len(KINDS), seed=1).run(8)
    assert tally.violations == 0, (tally.first, tally.worst)
    assert tally.certified > 0.3 * tally.ticks, tally.rungs
    assert tally.travelled > 0.1 * tally.ticks


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_no_adversary_breaks_a_limit_in_many_certified_ticks(name: str) -> None:
    tally = trial.Trial(SCENARIOS[name], robots=60, seed=1).run(40)
    assert tally.violations == 0, (tally.first, tally.worst)


@over("name", ["shipped", "stiff", "workspace", "own_margins", "targets", "moving"])
def test_the_same_adversaries_break_every_limit_that_nobody_enforces(monkeypatch, name: str) -> None:
    certified = trial.safety_of(SCENARIOS[name])
    monkeypatch.setattr(trial, "safety_of", lambda scenario: replace(certified, certify=False))
    unchecked = trial.Trial(SCENARIOS[name], robots=2 * len(KINDS), seed=0)
    every = np.ones(2 * len(KINDS), dtype=bool)
    tick = unchecked._count
    monkeypatch.setattr(unchecked, "_count", lambda report, *rest: tick(replace(report, certified=every), *rest))
    tally = unchecked.run(8)
    assert tally.violations > 0
    assert min(tally.worst.values()) > 0, tally.worst


@over("servo", SERVOS)
def test_the_servo_agrees_with_its_declared_plant_at_the_ends_of_sub_steps(servo: Servo) -> None:
    rng = np.random.default_rng(0)
    plant, ticks = servo.declared(), 6
    targets = rng.uniform(0.0, 100.0, (3, ticks, 2))
    at, moving = rng.uniform(0.0, 100.0, (3, 2)), rng.uniform(-100.0, 100.0, (3, 2))
    ours = servo.motion(targets.repeat(servo.period_ms, axis=1), at, moving)
    start = State(torch.from_numpy(at), torch.from_numpy(moving))
    theirs = plant.motion(torch.from_numpy(targets), start)
    for one, other in zip(ours, theirs, strict=True):
        # Both are float64; positions of 100 and speeds of 1000 after some hundred steps.
        np.testing.assert_allclose(one[:, servo.substep_ms :: servo.substep_ms], other.numpy(), rtol=0, atol=1e-9)


def test_a_smooth_servo_obeys_its_differential_equation() -> None:
    """Critically damped: p(t) = (1 + w t) exp(-w t) after a unit step, with w = 20 / s."""
    targets = np.zeros((1, 200, 2))
    positions, velocities = STIFF.motion(targets, np.ones((1, 2)), np.zeros((1, 2)))
    t = MS * np.arange(201)
    np.testing.assert_allclose(positions[0, :, 0], (1 + 20 * t) * np.exp(-20 * t), rtol=0, atol=1e-12)
    np.testing.assert_allclose(velocities[0, :, 0], -400 * t * np.exp(-20 * t), rtol=0, atol=1e-10)


def test_distances_are_signed_and_to_the_nearest_point() -> None:
    square = [[0.0, 0.0], [10.0, 0.0], [10.0, 10.0], [0.0, 10.0]]
    wall = [[0.0, 0.0], [10.0, 0.0], [10.0, 0.0], [0.0, 0.0]]
    solids = Solids(np.array([[square, wall, square]]), np.array([[0.0, 1.0, 0.0]]), np.zeros((1, 3)),
                    np.array([[True, True, False]]))  # fmt: skip
    points = np.array([[[13.0, 14.0], [5.0, 8.0], [5.0, 0.5], [-3.0, -4.0]]])
    expected = [[5.0, np.hypot(3.0, 14.0) - 1.0], [-2.0, 7.0], [-0.5, -0.5], [5.0, 4.0]]
    np.testing.assert_allclose(solids.distance(points)[0, :, :2], expected)
    assert np.isinf(solids.distance(points)[0, :, 2]).all()


def test_every_broken_limit_is_seen() -> None:
    """A robot that moves 8 px along x in a second, faster and faster, from 99.5 px of 100."""
    positions = np.full((1, 1001, 2), 99.5) + 8.0 * np.linspace(0.0, 1.0, 1001)[:, None] ** 2 * [1.0, 0.0]
    velocities = np.broadcast_to([108.0, 0.0], positions.shape)
    found = {name: one.max() for name, one in STRAIGHT.excess_of_motion(SMOOTH, positions, velocities).items()}
    assert found["speed"] == pytest.approx(8.0)
    assert found["workspace"] == pytest.approx(7.5)
    assert found["beside"] == pytest.approx(17.5)
    assert found["acceleration"] == pytest.approx(16.0 - 10.0)
    sent = np.array([[[0.0, 0.0], [0.0, 0.0], [1.0, 0.0], [4.0, 0.0]]])
    on_targets = Limits(targets=(0.0, 3.0), target_speed=20.0, target_acceleration=100.0).excess_of_targets(sent, 0.1)
    assert {name: round(float(one[0]), 9) for name, one in on_targets.items()} == {
        "targets": 1.0,
        "target_speed": 10.0,
        "target_acceleration": 100.0,
    }


@over("speed, is_excused", [(0.0, False), (5.0, True)])
def test_only_what_moves_is_excused_and_only_while_the_robot_stands(speed: float, is_excused: bool) -> None:
    """A disc of radius 10 moves up to a robot that must be 2 px away."""
    start = Solids(np.zeros((1, 1, 4, 2)), np.full((1, 1), 10.0), np.full((1, 1), speed), np.ones((1, 1), dtype=bool))
    end = replace(start, vertices=start.vertices + np.array([20.0, 0.0]))
    still = np.broadcast_to([30.0, 0.0], (1, 101, 2))
    share = np.linspace(0.0, 1.0, 101)[None]
    for stands in (True, False):
        found = STRAIGHT.excess_of_distance(still, start, end, share, np.full((1, 101), stands))
        assert bool((found > 0).any()) == (not (stands and is_excused))
        if not (stands and is_excused):
            assert found.max() == pytest.approx(2.0)


def test_a_robot_rests_only_in_sub_steps_that_it_enters_and_leaves_slowly() -> None:
    positions = np.zeros((1, 31, 2))
    velocities = np.zeros((1, 31, 2))
    velocities[0, 20, 0] = 3.0
    found = rests(SMOOTH, positions, velocities, rest_speed=1.0)[0]
    assert found[:10].all()
    assert not found[10:].any()


@over("name", ["noise", "everything"])
def test_the_world_keeps_to_what_is_assumed(name: str) -> None:
    """Errors within A1 and A2, obstacles within A3, calls within A5."""
    scenario = replace(SCENARIOS[name], late=0.0, jumps=0.0, dropped=0.0, garbage=0.0)
    assumed, world = scenario.assumptions, World(scenario, 10, 0)
    world.begin(np.ones(10, dtype=bool))
    rng, before, then, largest = np.random.default_rng(0), world._solids, np.zeros(10), 0.0
    for tick in range(12):
        seen, surroundings = world.sense()
        state, now = surroundings.plant_state, np.asarray(surroundings.time_s)
        assert state is not None
        true = world._position + world._off
        off = np.linalg.norm(state.position.numpy() - true, axis=-1)
        off_velocity = np.linalg.norm(state.velocity.numpy() - world._velocity - world._off_velocity, axis=-1)
        assert off.max() <= assumed.position_error
        assert off_velocity.max() <= assumed.velocity_error
        assert np.linalg.norm(world._off, axis=-1).max() <= assumed.tracking_error
        largest = max(largest, float(off.max()))
        wait = now - tick * scenario.servo.period_ms * MS
        assert -1e-9 <= wait.min() <= wait.max() <= assumed.latency_s + 1e-9
        moved = np.linalg.norm(world._solids.vertices - before.vertices, axis=-1).max(-1)
        moved = moved + world._solids.radius - before.radius
        assert (moved <= before.speed * (now - then)[:, None] + 1e-9).all()
        before, then = world._solids, now
        world.act(seen["agent"] + rng.normal(size=(10, 2)))
    assert largest > 0.99 * assumed.position_error


def test_tracking_errors_count_from_any_moment() -> None:
    """An error of the state at one moment, as the plant lets it decay, is part of the error at a later one."""
    scenario = Scenario(STIFF, Limits(distance=1.0), NOISY)
    world = World(scenario, 50, 0)
    world.begin(np.ones(50, dtype=bool))
    now = world._off, world._off_velocity
    world._stray()
    later = world._off, world._off_velocity
    free = STIFF.motion(np.zeros((50, 300, 2)), *now)
    for one, other, bound in zip(free, later, (NOISY.tracking_error, NOISY.tracking_velocity_error), strict=True):
        assert np.linalg.norm(other[:, None] - one, axis=-1).max() <= bound


def test_an_action_takes_effect_within_the_declared_delay() -> None:
    scenario = Scenario(SMOOTH, Limits(), Assumptions(delay_substeps=3, latency_s=0.02))
    world = World(scenario, 40, 0)
    world.begin(np.ones(40, dtype=bool))
    waits = []
    for tick in range(6):
        world.sense()
        before = world.clock.now
        motion = world.act(np.full((40, 2), float(tick)))
        has_come = motion.commands[:, :, 0] == tick
        assert has_come.any(1).all()
        waits.append(has_come.argmax(1) + before - 100 * tick)
    assert np.concatenate(waits).max() == 30
    assert np.concatenate(waits).min() == 0
