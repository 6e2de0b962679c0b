"""The plant: motion by matrices is motion by a loop, and the bounds drawn from it are bounds."""

import gymnasium
import numpy as np
import pytest
import torch
from certified_cases import SERVOS, plant_of
from dense_sampling import Servo
from one_case import over

from diffpolicy.constraints.plant import LinearPlant, State, identify, position_servo

PUSHT = position_servo(100.0, 20.0, 0.01, 10)


def loop(plant: LinearPlant, commands: np.ndarray, state: State) -> tuple[np.ndarray, np.ndarray]:
    """One sub-step after another, in plain Python."""
    (a, b), (c, d) = plant.transition
    e, f = plant.drive
    positions, velocities = [], []
    position, velocity = state.position.numpy(), state.velocity.numpy()
    for tick in range(commands.shape[1]):
        for _ in range(plant.substeps):
            u = commands[:, tick]
            position, velocity = a * position + b * velocity + e * u, c * position + d * velocity + f * u
            positions.append(position)
            velocities.append(velocity)
    return np.stack(positions, 1), np.stack(velocities, 1)


def random_state(batch: int, seed: int = 0) -> State:
    generator = torch.Generator().manual_seed(seed)
    position, velocity = 10.0 * torch.randn(2, batch, 2, generator=generator, dtype=torch.float64)
    return State(position, velocity)


@over("servo", SERVOS)
def test_motion_is_the_loop_over_sub_steps(servo: Servo) -> None:
    plant = plant_of(servo)
    state = random_state(4)
    commands = 10.0 * torch.randn(4, 6, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    position, velocity = plant.motion(commands, state)
    expected = loop(plant, commands.numpy(), state)
    # Sums of some hundred terms of size 10, rounded in another order.
    np.testing.assert_allclose(position.numpy(), expected[0], rtol=0, atol=1e-10)
    np.testing.assert_allclose(velocity.numpy(), expected[1], rtol=0, atol=1e-9)
    by_physics = servo.motion(servo.held(commands.numpy(), 6), state.position.numpy(), state.velocity.numpy())
    np.testing.assert_allclose(position.numpy(), by_physics[0][:, 1:], rtol=0, atol=1e-10)
    np.testing.assert_allclose(velocity.numpy(), by_physics[1][:, 1:], rtol=0, atol=1e-9)


def test_it_is_the_agent_of_pusht() -> None:
    env = gymnasium.make("diffpolicy_envs:diffpolicy/PushT-v0")
    rng = np.random.default_rng(0)
    _, info = env.reset(seed=0)
    worst = 0.0
    for _ in range(40):
        state = State(*(torch.tensor(info[f"agent_{name}"]).double()[None] for name in ("position", "velocity")))
        action = rng.uniform(50.0, 450.0, 2).astype(np.float32)
        *_, info = env.step(action)
        position, velocity = PUSHT.motion(torch.tensor(action).double()[None, None], state)
        worst = max(worst, np.abs(position[0, -1].numpy() - info["agent_position"]).max())
        worst = max(worst, np.abs(velocity[0, -1].numpy() - info["agent_velocity"]).max() / 10.0)
    env.close()
    assert worst < 1e-4  # px, and 1e-3 px/s: pymunk stores positions in double, our env's actions are float32


@over("servo", SERVOS)
def test_before_undoes_a_sub_step(servo: Servo) -> None:
    plant = plant_of(servo)
    one = LinearPlant(plant.transition, plant.drive, plant.substep_s, 1)
    state, command = random_state(3), random_state(3, seed=2).position
    position, velocity = one.motion(command[:, None], state)
    back = plant.before(State(position[:, 0], velocity[:, 0]), command)
    torch.testing.assert_close(back.position, state.position, rtol=0.0, atol=1e-10)  # a well-conditioned 2x2 solve
    torch.testing.assert_close(back.velocity, state.velocity, rtol=0.0, atol=1e-10)


def log_of(plant: LinearPlant, ticks: int = 30) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    state = random_state(1)
    commands = torch.randn(1, ticks, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    position, velocity = plant.motion(commands, state)
    positions = torch.cat([state.position, position[0]])
    velocities = torch.cat([state.velocity, velocity[0]])
    return positions, velocities, torch.cat([commands[0].repeat_interleave(plant.substeps, 0), commands[0, -1:]])


@over("servo", SERVOS)
def test_a_log_tells_the_plant(servo: Servo) -> None:
    plant = plant_of(servo)
    found = identify(*log_of(plant), plant.substep_s, plant.substeps)
    np.testing.assert_allclose(found.transition, plant.transition, rtol=0, atol=1e-9)  # least squares of exact data
    np.testing.assert_allclose(found.drive, plant.drive, rtol=0, atol=1e-9)


def test_three_rows_are_enough_and_two_are_not() -> None:
    positions, velocities, commands = (part[:4, :1] for part in log_of(PUSHT))
    found = identify(positions, velocities, commands, PUSHT.substep_s, PUSHT.substeps)
    np.testing.assert_allclose(found.transition, PUSHT.transition, rtol=0, atol=1e-6)  # three unknowns, three rows
    np.testing.assert_allclose(found.drive, PUSHT.drive, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="2 rows cannot tell position"):
        identify(positions[:3], velocities[:3], commands[:3], PUSHT.substep_s, PUSHT.substeps)


def test_logs_that_tell_nothing_are_refused() -> None:
    positions, velocities, commands = log_of(PUSHT)
    with pytest.raises(ValueError, match="NaN"):
        identify(positions * float("nan"), velocities, commands, 0.01, 10)
    with pytest.raises(ValueError, match="move more"):
        identify(positions[:1].expand(20, -1), 0 * velocities[:20], positions[:1].expand(20, -1), 0.01, 10)
    with pytest.raises(ValueError, match="spectral radius"):
        identify(positions.flip(0), -velocities.flip(0), commands.flip(0), 0.01, 10)


@over(
    "make, message",
    [
        (lambda: position_servo(100.0, 20.0, 0.01, 0), "substeps 0"),
        (lambda: position_servo(100.0, 20.0, 0.0, 10), "substep_s 0.0"),
        (lambda: position_servo(100.0, 20.0, float("nan"), 10), "substep_s nan"),
        (lambda: position_servo(100.0, float("nan"), 0.01, 10), "finite"),
        (lambda: position_servo(100.0, 0.0, 0.01, 10), "spectral radius 1.0"),
        (lambda: position_servo(100.0, 300.0, 0.01, 10), "spectral radius"),
        (lambda: position_servo(-1.0, 20.0, 0.01, 10), "spectral radius"),
        (lambda: position_servo(100.0, 100.0, 0.01, 10), "invertible"),
        (lambda: position_servo(1e-3, 20.0, 0.01, 10), "does not settle in 10000 sub-steps"),
        (lambda: LinearPlant(((0.9, 0.01), (0.0, 0.5)), (0.2, 0.0), 0.01, 10), r"ends at .*, expected \(1, 0\)"),
    ],
)
def test_plants_that_offer_no_brake_are_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@over("servo", [*SERVOS, Servo(100.0, 2.0, 0.005, 20), Servo(4.0, 1.0, 0.01, 10)])
def test_the_largest_responses_are_bounds_for_good(servo: Servo) -> None:
    (off, moving), (speed_off, speed) = plant_of(servo).largest_free_response
    rng = np.random.default_rng(0)
    position, velocity = rng.normal(size=(200, 2)), rng.normal(size=(200, 2)) * rng.choice([0.0, 1.0, 30.0], (200, 1))
    ticks = int(10.0 / (servo.substeps * servo.substep_s))
    path, velocities = servo.motion(servo.held(np.zeros((200, 1, 2)), ticks), position, velocity)
    distance, pace = np.linalg.norm(position, axis=1), np.linalg.norm(velocity, axis=1)
    travelled = np.linalg.norm(path - position[:, None], axis=-1).max(1)
    fastest = np.linalg.norm(velocities, axis=-1).max(1)
    assert (travelled <= off * distance + moving * pace + 1e-9).all()
    assert (fastest <= speed_off * distance + speed * pace + 1e-9).all()
    # and each is reached: along one axis, by an offset or a velocity alone
    pull, _ = servo.motion(servo.held(np.zeros((1, 1, 2)), ticks), np.array([[1.0, 0.0]]), np.zeros((1, 2)))
    assert max(1.0, np.abs(pull[0, :, 0] - 1.0).max()) == pytest.approx(off, rel=servo.substep_s)


@over("servo", [*SERVOS, Servo(100.0, 20.0, 0.001, 100)])
def test_after_settle_ticks_the_speed_stays_below_a_thousandth_of_its_largest(servo: Servo) -> None:
    plant = plant_of(servo)
    rows = plant.settle_ticks * plant.substeps
    _, velocities = servo.motion(
        servo.held(np.zeros((1, 1, 2)), 4 * plant.settle_ticks), np.array([[1.0, 0.0]]), np.zeros((1, 2))
    )
    speed = np.abs(velocities[0, 1:, 0])
    assert speed[rows - 1 :].max() <= 1e-3 * speed.max()
    assert speed[rows - 1 - 2 * plant.substeps :].max() > 1e-3 * speed.max()  # no more ticks than it takes
