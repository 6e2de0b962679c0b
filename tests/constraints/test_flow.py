"""Motion within a sub-step: what is certified holds for the smooth motion too, judged by the matrix exponential."""

from dataclasses import dataclass

import numpy as np
import torch
from one_case import over

from diffpolicy.constraints.assumptions import Assumptions
from diffpolicy.constraints.certificate import Certifier
from diffpolicy.constraints.constraint import Quantity
from diffpolicy.constraints.flow import flow
from diffpolicy.constraints.limits import Box, NormLimit
from diffpolicy.constraints.planar.keep_out import KeepOut
from diffpolicy.constraints.planar.obstacles import disc, no_obstacles
from diffpolicy.constraints.plant import LinearPlant, State
from diffpolicy.constraints.trajectory import Start

POINTS = 20  # judged per sub-step
CASES, ROWS = 80, 4


@dataclass(frozen=True)
class Continuous:
    """A servo in continuous time: acceleration stiffness * (command - position) - damping * velocity."""

    stiffness: float
    damping: float
    substep_s: float
    substeps: int

    def over(self, seconds: float) -> torch.Tensor:
        """[2, 2], what becomes of the distance from a held command, and of the velocity."""
        rates = torch.tensor([[0.0, 1.0], [-self.stiffness, -self.damping]], dtype=torch.float64)
        return torch.linalg.matrix_exp(rates * seconds)

    @property
    def plant(self) -> LinearPlant:
        """The servo sampled exactly."""
        whole = self.over(self.substep_s)
        drive = torch.tensor([1.0, 0.0], dtype=torch.float64) - whole[:, 0]
        return LinearPlant(tuple(map(tuple, whole.tolist())), tuple(drive.tolist()), self.substep_s, self.substeps)

    def motion(self, commands: np.ndarray, position: np.ndarray, velocity: np.ndarray) -> tuple[np.ndarray, ...]:
        """Positions and velocities [B, T, A] at POINTS per sub-step, for commands [B, ticks, A], the last one held."""
        step = self.over(self.substep_s / POINTS).numpy()
        path, velocities = [], []
        for command in np.moveaxis(commands, 1, 0):
            for _ in range(POINTS * self.substeps):
                off = position - command
                position = command + step[0, 0] * off + step[0, 1] * velocity
                velocity = step[1, 0] * off + step[1, 1] * velocity
                path.append(position)
                velocities.append(velocity)
        return np.stack(path, 1), np.stack(velocities, 1)


SERVOS = [Continuous(100.0, 20.0, 0.01, 10), Continuous(400.0, 40.0, 0.05, 2), Continuous(100.0, 6.0, 0.05, 2)]


def cases(servo: Continuous, size: float) -> tuple[np.ndarray, np.ndarray]:
    """Commands [B, n, 2] that take a robot at rest in the origin on curved ways, and the start positions [B, 2]."""
    rng = np.random.default_rng(0)
    steps = size * (rng.normal(size=(CASES, 1, 2)) + 0.7 * rng.normal(size=(CASES, ROWS, 2)))
    return np.cumsum(steps, 1).astype(np.float32).astype(np.float64), np.zeros((CASES, 2))


def certified(servo: Continuous, constraint, commands: np.ndarray, obstacles) -> np.ndarray:
    here = torch.zeros(CASES, 2, dtype=torch.float64)
    start = Start(State(here, here), here[:, None].repeat(1, 3, 1))
    certifier = Certifier([constraint], servo.plant, servo.plant.period_s, Assumptions())
    return (certifier.certify(torch.from_numpy(commands), start, obstacles).length == ROWS).numpy()


@over("servo", SERVOS)
def test_a_certified_speed_is_never_exceeded_within_a_sub_step(servo: Continuous) -> None:
    limit = 100.0
    commands, origin = cases(servo, 8.0)
    _, velocities = servo.motion(np.concatenate([commands, commands[:, -1:].repeat(20, 1)], 1), origin, origin)
    fastest = np.linalg.norm(velocities, axis=-1).max(1)
    for scale in (0.97, 1.0) if servo.substep_s < 0.02 else (0.8, 0.9, 0.97, 1.0):  # each plan just below its limit
        scaled = (commands * (scale * limit / fastest)[:, None, None]).astype(np.float32).astype(np.float64)
        ok = certified(servo, NormLimit(limit, Quantity("motion", 1)), scaled, no_obstacles(CASES))
        _, found = servo.motion(np.concatenate([scaled, scaled[:, -1:].repeat(20, 1)], 1), origin, origin)
        assert (np.linalg.norm(found, axis=-1).max(1)[ok] <= limit).all()
        if scale == 0.97:
            assert ok.mean() > 0.9  # and little is refused that could be allowed


@over("servo", SERVOS)
def test_the_mean_over_a_sub_step_would_have_passed_what_is_too_fast(servo: Continuous) -> None:
    commands, origin = cases(servo, 8.0)
    held = np.concatenate([commands, commands[:, -1:].repeat(20, 1)], 1)
    path, velocities = servo.motion(held, origin, origin)
    ends = np.concatenate([origin[:, None], path[:, POINTS - 1 :: POINTS]], 1)
    mean = np.linalg.norm(np.diff(ends, axis=1), axis=-1).max(1) / servo.substep_s
    fastest = np.linalg.norm(velocities, axis=-1).max(1)
    between = commands * (100.0 / np.sqrt(mean * fastest))[:, None, None]  # mean below 100, motion above
    assert (fastest > mean).all()
    assert not certified(servo, NormLimit(100.0, Quantity("motion", 1)), between, no_obstacles(CASES)).any()


@over("servo", SERVOS)
def test_a_path_that_bulges_over_its_chords_stays_clear(servo: Continuous) -> None:
    """A disc, or the wall of a box, that the path passes by less and less."""
    commands, origin = cases(servo, 8.0)
    path, _ = servo.motion(np.concatenate([commands, commands[:, -1:].repeat(20, 1)], 1), origin, origin)
    far = path[:, :, 0].max(1)
    for gap in (-0.01, 0.0, 0.001, 0.02, 0.3):
        x = float(np.median(far)) + gap
        shifted = commands * (x / np.maximum(far, 1e-3))[:, None, None]
        shifted = np.where((far > 1.0)[:, None, None], shifted, commands).astype(np.float32).astype(np.float64)
        motion, _ = servo.motion(np.concatenate([shifted, shifted[:, -1:].repeat(20, 1)], 1), origin, origin)
        ok = certified(servo, Box([-1e6, -1e6], [x, 1e6], Quantity("motion")), shifted, no_obstacles(CASES))
        assert motion[ok][:, :, 0].max(initial=0.0) <= x + 1e-9
        obstacles = disc(x + 1000.0, 0.0, 1000.0).robots(torch.zeros(CASES, dtype=torch.long))
        ok = certified(servo, KeepOut(0.0), shifted, obstacles)
        distance = np.hypot(motion[..., 0] - x - 1000.0, motion[..., 1]).min(1) - 1000.0
        assert distance[ok].min(initial=0.0) >= -1e-9
        assert 0.0 < ok.mean() < 1.0


@over("servo", SERVOS)
def test_the_flow_passes_through_the_samples(servo: Continuous) -> None:
    plant = servo.plant
    within = flow(plant.transition, plant.substep_s)
    assert within is not None
    points = len(within.speeds) - 1
    for i, row in enumerate(within.speeds):
        expected = servo.over(servo.substep_s * i / points)[1]
        torch.testing.assert_close(row, expected, rtol=0.0, atol=1e-8)  # a critical servo's logarithm, to rounding


@over("turn", [0.1, 1.0, 1.7, 2.5, 3.1])
def test_the_flow_is_found_up_to_half_a_swing_per_sub_step(turn: float) -> None:
    servo = Continuous(stiffness=4.0 + (turn / 0.05) ** 2, damping=4.0, substep_s=0.05, substeps=2)
    within = flow(servo.plant.transition, servo.substep_s)
    assert within is not None
    rates = torch.tensor([[0.0, 1.0], [-servo.stiffness, -servo.damping]], dtype=torch.float64)
    torch.testing.assert_close(within.generator, rates * servo.substep_s, rtol=1e-6, atol=1e-6)


def test_a_robot_outside_of_a_box_right_now_is_not_certified_though_it_comes_back_within_the_sub_step() -> None:
    plant = SERVOS[1].plant
    state = State(torch.tensor([[5.0, 0.0]]).double(), torch.tensor([[-200.0, 0.0]]).double())
    start = Start(state, torch.zeros(1, 3, 2).double())
    certifier = Certifier([Box(-50.0, 4.0, Quantity("motion"))], plant, plant.period_s, Assumptions())
    found = certifier.certify(torch.zeros(1, 2, 2), start, no_obstacles(1))
    assert int(found.length) == 0
    assert not bool(found.can_stop)


def test_a_plant_that_changes_sign_from_sub_step_to_sub_step_has_no_flow() -> None:
    assert flow(((-0.5, 0.0), (0.0, 0.5)), 0.1) is None
    plant = LinearPlant(((0.2, 0.05), (4.2, -0.2)), (0.8, -4.2), 0.1, 1)
    assert plant.flow is None
    here = torch.zeros(1, 2, dtype=torch.float64)
    start, commands = Start(State(here, here), here[:, None].repeat(1, 3, 1)), torch.ones(1, 2, 2).double()
    for limit, length in ((50.0, 2), (1.0, 0)):
        certifier = Certifier([NormLimit(limit, Quantity("motion", 1))], plant, 0.1, Assumptions())
        assert int(certifier.certify(commands, start, no_obstacles(1)).length) == length
    assert float(Assumptions(0.1).tubes(plant, commands, start)[0].max()) > 0.0
