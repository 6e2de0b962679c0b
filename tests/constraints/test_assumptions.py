"""Tubes: no error that is assumed leads outside, and in simple cases they are not larger than they must be."""

import numpy as np
import pytest
import torch
from certified_cases import SERVOS, plant_of
from dense_sampling import Servo
from one_case import over

from diffpolicy.constraints.assumptions import Assumptions
from diffpolicy.constraints.plant import LinearPlant, State
from diffpolicy.constraints.trajectory import Start

TICKS, CASES = 8, 400


def robots(seed: int, cases: int = CASES) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """History, commands, position, velocity of the same robot many times."""
    rng = np.random.default_rng(seed)
    path = np.cumsum(rng.normal(size=(3 + TICKS, 2)), axis=0)
    parts = path[:3], path[3:], rng.normal(size=2), 3.0 * rng.normal(size=2)
    return tuple(np.broadcast_to(part, (cases, *part.shape)).copy() for part in parts)


def tubes(assumptions: Assumptions, servo: Servo, history, commands, position, velocity) -> tuple[np.ndarray, ...]:
    start = Start(State(torch.tensor(position[:1]), torch.tensor(velocity[:1])), torch.tensor(history[:1]))
    found = assumptions.tubes(plant_of(servo), torch.tensor(commands[:1]), start)
    return tuple(tube[0].numpy() for tube in found)


def ball(rng: np.random.Generator, radius: float) -> np.ndarray:
    direction = rng.normal(size=(CASES, 2))
    share = rng.choice([0.5, 1.0], (CASES, 1))
    return radius * share * direction / np.linalg.norm(direction, axis=1, keepdims=True)


@over("servo", SERVOS)
@over("delay_ticks", [0.0, 0.4, 1.0, 2.0, 3.0])
@over("errors", [(0.0, 0.0, 0.0, 0.0), (0.1, 0.5, 0.03, 0.04)])
def test_nothing_that_is_assumed_leads_outside(servo: Servo, delay_ticks: float, errors) -> None:
    delay = int(delay_ticks * servo.substeps)
    position_error, velocity_error, tracking, tracking_velocity = errors
    assumptions = Assumptions(*errors, delay_substeps=delay)
    history, commands, position, velocity = robots(seed=delay)
    tube, velocity_tube = tubes(assumptions, servo, history, commands, position, velocity)
    rng = np.random.default_rng(1)
    delays = rng.integers(0, delay + 1, (CASES, 3 + TICKS))
    delays[: CASES // 4] = rng.choice([0, delay], (CASES // 4, 3 + TICKS))
    inputs = servo.late(history, commands, TICKS, delays)
    true, true_velocity = servo.motion(
        inputs, position + ball(rng, position_error), velocity + ball(rng, velocity_error)
    )
    true, true_velocity = true + ball(rng, tracking)[:, None], true_velocity + ball(rng, tracking_velocity)[:, None]
    predicted, predicted_velocity = servo.motion(servo.held(commands, TICKS), position, velocity)
    off = np.linalg.norm(true - predicted, axis=-1)[:, 1:]
    off_velocity = np.linalg.norm(true_velocity - predicted_velocity, axis=-1)[:, 1:]
    assert (off <= tube + 1e-9).all()
    assert (off_velocity <= velocity_tube + 1e-9).all()


@over("servo", [*SERVOS, Servo(100.0, 20.0, 0.005, 20)])
def test_a_single_late_command_fills_the_tube(servo: Servo) -> None:
    """One change of the command, as late as can be: the worst case that the tube is drawn for.

    What lies within the sub-steps, which this servo does not tell, is bounded too: less the shorter they are.
    """
    delay = servo.substeps
    history, commands, position, velocity = robots(seed=0, cases=delay + 1)
    history[:], commands[:], position[:], velocity[:] = 0.0, [1.0, 0.0], 0.0, 0.0
    tube, velocity_tube = tubes(Assumptions(delay_substeps=delay), servo, history, commands, position, velocity)
    delays = np.repeat(np.arange(delay + 1)[:, None], 3 + TICKS, axis=1)
    true, true_velocity = servo.motion(servo.late(history, commands, TICKS, delays), position, velocity)
    largest = np.abs(true - true[:1]).max((0, 2))[1:]
    fastest = np.abs(true_velocity - true_velocity[:1]).max((0, 2))[1:]
    assert (tube >= largest - 1e-9).all()
    assert (velocity_tube >= fastest - 1e-9).all()
    assert tube.max() <= (1.0 + 4.0 * servo.substep_s) * largest.max()
    assert velocity_tube.max() <= (1.0 + 16.0 * servo.substep_s) * fastest.max()


@over("servo", SERVOS)
def test_random_lateness_comes_within_a_factor_of_three_of_the_tube(servo: Servo) -> None:
    history, commands, position, velocity = robots(seed=5)
    tube, _ = tubes(Assumptions(delay_substeps=servo.substeps), servo, history, commands, position, velocity)
    delays = np.random.default_rng(2).choice([0, servo.substeps], (CASES, 3 + TICKS))
    true, _ = servo.motion(servo.late(history, commands, TICKS, delays), position, velocity)
    predicted, _ = servo.motion(servo.held(commands, TICKS), position, velocity)
    assert np.linalg.norm(true - predicted, axis=-1)[:, 1:].max() >= tube.max() / 3.0


def test_without_errors_there_is_no_tube() -> None:
    for tube in tubes(Assumptions(), SERVOS[0], *robots(seed=0)):
        np.testing.assert_array_equal(tube, 0.0)


@over("name", list(vars(Assumptions())))
@over("value", [-1, float("nan"), float("inf")])
def test_bounds_that_are_none_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        Assumptions(**{name: value})


def test_a_robot_that_never_rests_is_refused() -> None:
    with pytest.raises(ValueError, match="no robot would ever be at rest"):
        Assumptions(tracking_velocity_error=0.2, rest_speed=0.1)


def test_a_plant_whose_position_is_not_the_sum_of_its_velocities_is_bounded_too() -> None:
    """The exact answer of a servo over a sub-step: the mean velocity differs from the one at the end."""
    h, stiffness, damping = 0.1, 100.0, 20.0
    exact = torch.linalg.matrix_exp(torch.tensor([[0.0, 1.0], [-stiffness, -damping]]).double() * h)
    drive = torch.eye(2, dtype=torch.float64)[:, 0] - exact[:, 0]
    plant = LinearPlant(tuple(map(tuple, exact.tolist())), tuple(drive.tolist()), h, 1)
    still = torch.zeros(1, 2, dtype=torch.float64)
    commands = torch.tensor([[[0.125, 0.0], [0.25, 0.0], [0.375, 0.0], [0.5, 0.0]]], dtype=torch.float64)
    start, error = Start(State(still, still), still[:, None].repeat(1, 3, 1)), 0.2
    _, tube = Assumptions(velocity_error=error, rest_speed=0.05).tubes(plant, commands, start)
    states = (State(start.state.position, torch.tensor([[v, 0.0]], dtype=torch.float64)) for v in (0.0, error))
    path = [plant.motion(commands, state)[0] for state in states]
    first = [torch.cat([start.state.position[:, None], positions], dim=1).diff(dim=1) / h for positions in path]
    assert bool(((first[1] - first[0]).norm(dim=-1) <= tube + 1e-9).all())
