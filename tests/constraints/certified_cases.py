"""Random robots, obstacles and plans under random limits, and a dense check of their certificates.

Shape legend: B robots, n rows of a plan, P = n + 1 prefixes, M obstacles.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from dense_sampling import Demands, Servo, Solids, violation

from diffpolicy.constraints.assumptions import Assumptions
from diffpolicy.constraints.certificate import Certificate, Certifier
from diffpolicy.constraints.constraint import Constraint, Quantity
from diffpolicy.constraints.limits import Box, NormLimit
from diffpolicy.constraints.planar.keep_out import KeepOut
from diffpolicy.constraints.planar.obstacles import Obstacles
from diffpolicy.constraints.plant import LinearPlant, State, position_servo
from diffpolicy.constraints.trajectory import Start

HOLD_S = 5.0  # time that is checked after the last command
ROBOTS = 50  # per certificate
ROUNDING = 1e-9  # units; the certificate is float64
SERVOS = (
    Servo(100.0, 20.0, 0.02, 5),  # critical
    Servo(100.0, 8.0, 0.02, 5),  # overshoots
    Servo(60.0, 25.0, 0.01, 8),
    Servo(150.0, 15.0, 0.05, 2),
    Servo(20.0, 7.0, 0.1, 1),
)


@dataclass(frozen=True)
class Robots:
    """One batch: the measured and the true states, and the plan."""

    history: np.ndarray  # [B, 3, 2]
    commands: np.ndarray  # [B, n, 2]
    position: np.ndarray  # [B, 2], measured
    velocity: np.ndarray
    true_position: np.ndarray
    true_velocity: np.ndarray
    solids: Solids


def plant_of(servo: Servo) -> LinearPlant:
    return position_servo(servo.stiffness, servo.damping, servo.substep_s, servo.substeps)


def obstacles_of(solids: Solids) -> Obstacles:
    parts = (torch.as_tensor(part) for part in (solids.vertices, solids.radius, solids.speed, solids.is_used))
    return Obstacles(*parts)


def start_of(robots: Robots) -> Start:
    state = State(torch.as_tensor(robots.position), torch.as_tensor(robots.velocity))
    return Start(state, torch.as_tensor(robots.history))


def constraints_of(demands: Demands) -> list[Constraint]:
    made: list[Constraint] = []
    if demands.workspace is not None:
        made.append(Box(*demands.workspace, Quantity("commands")))
    if demands.command_step is not None:
        made.append(NormLimit(demands.command_step, Quantity("commands", 1)))
    if demands.command_acceleration is not None:
        made.append(NormLimit(demands.command_acceleration, Quantity("commands", 2)))
    if demands.speed is not None:
        made.append(NormLimit(demands.speed, Quantity("motion", 1)))
    if demands.distance is not None:
        made.append(KeepOut(0.8 * demands.distance, 0.2 * demands.distance))
    if demands.command_distance is not None:
        made.append(KeepOut(demands.command_distance, acts_on="commands"))
    return made


def random_demands(rng: np.random.Generator) -> Demands:
    def maybe(share: float, low: float, high: float) -> float | None:
        return rng.uniform(low, high) if rng.random() < share else None

    return Demands(
        workspace=(rng.uniform(0.0, 1.0), rng.uniform(9.0, 10.0)) if rng.random() < 0.5 else None,
        command_step=maybe(0.4, 1.0, 10.0),
        command_acceleration=maybe(0.4, 10.0, 100.0),
        speed=maybe(0.4, 1.0, 8.0),
        distance=maybe(0.9, 0.0, 0.5),
        command_distance=maybe(0.15, 0.0, 0.3),
    )


def random_assumptions(rng: np.random.Generator, servo: Servo, rest_speed: float) -> Assumptions:
    if rng.random() < 0.5:
        return Assumptions(rest_speed=rest_speed)
    errors = rng.uniform(0.0, 0.05), rng.uniform(0.0, 0.2)
    return Assumptions(*errors, rest_speed=rest_speed, delay_substeps=int(rng.integers(0, 2 * servo.substeps)))


def random_solids(rng: np.random.Generator, slots: int, start: np.ndarray) -> Solids:
    """Random discs, rotated boxes, thin walls and triangles; some of them move, and the first is in the way."""
    shape = len(start), slots
    center = rng.uniform(0.0, 10.0, (*shape, 2))
    if slots:
        center[:, 0] = start + rng.uniform(0.3, 2.0, (len(start), 1)) * _directions(rng, (len(start),))
    angle = rng.uniform(0.0, 2 * np.pi, shape)
    long, wide = np.exp(rng.uniform(np.log(0.05), np.log(1.5), (2, *shape)))
    kind = rng.integers(0, 4, shape)[..., None, None]
    corners = np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
    unit = np.select(
        [kind == 0, kind == 1, kind == 2],
        [0 * corners, corners, corners * [1.0, 0.0]],
        np.array([[-1.0, -1.0], [1.0, -1.0], [0.0, 1.0], [0.0, 1.0]]),
    )
    local = unit * np.stack([long, wide], -1)[..., None, :]
    cos, sin = np.cos(angle)[..., None], np.sin(angle)[..., None]
    x, y = local[..., 0] * cos - local[..., 1] * sin, local[..., 0] * sin + local[..., 1] * cos
    vertices = np.stack([x, y], -1) + center[..., None, :]
    vertices = np.where(rng.random((*shape, 1, 1)) < 0.5, vertices, vertices[:, :, ::-1])  # either orientation
    radius = np.where((kind[..., 0, 0] == 0) | (rng.random(shape) < 0.2), rng.uniform(0.0, 0.8, shape), 0.0)
    speed = np.where(rng.random(shape) < 0.3, rng.uniform(0.0, 1.5, shape), 0.0)
    return Solids(vertices, radius, speed, rng.random(shape) < 0.8)


def random_robots(rng: np.random.Generator, assumptions: Assumptions, servo: Servo, n: int = 3) -> Robots:
    batch = (ROBOTS,)
    position = rng.uniform(1.0, 9.0, (*batch, 2))
    size = np.exp(rng.uniform(np.log(0.01), np.log(1.0), (*batch, 1, 1)))  # of a step, for a range of speeds
    heading = _directions(rng, batch)[:, None]
    steps = size * (heading + 0.3 * rng.normal(size=(*batch, n + 2, 2)))
    first = position[:, None] + rng.uniform(0.0, 1.0, (*batch, 1, 1)) * size * heading
    path = np.concatenate([first, first + np.cumsum(steps, axis=1)], axis=1)
    velocity = rng.choice([0.0, 0.5, 1.0], (*batch, 1)) * (steps[:, 0] / (servo.substeps * servo.substep_s))
    at_bound = rng.choice([0.5, 1.0], (2, *batch, 1))
    off = at_bound[0] * assumptions.position_error * _directions(rng, batch)
    off_velocity = at_bound[1] * assumptions.velocity_error * _directions(rng, batch)
    solids = random_solids(rng, int(rng.integers(0, 4)), position)
    commands = path[:, 3:].astype(np.float32).astype(np.float64)
    return Robots(path[:, :3], commands, position, velocity, position + off, velocity + off_velocity, solids)


def _directions(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    angle = rng.uniform(0.0, 2 * np.pi, shape)
    return np.stack([np.cos(angle), np.sin(angle)], -1)


def worst_of_certified(
    found: Certificate, robots: Robots, demands: Demands, assumptions: Assumptions, servo: Servo, seed: int
) -> np.ndarray:
    """The worst violation of each prefix [B, P] of a plan, -inf if the prefix is not certified.

    It is checked with its way to stop, with its last command held forever, and with every part of the way to stop whose
    last command is held forever (the sender has died). A prefix counts as certified if it may be sent; prefix 0 counts
    if stopping now is certified.
    """
    rng = np.random.default_rng(seed)
    batch, n, _ = robots.commands.shape
    period_s = servo.substeps * servo.substep_s
    ticks = n + found.stops.shape[2] + int(np.ceil(HOLD_S / period_s))
    worst = np.full((batch, n + 1), -np.inf)
    for rows in range(n + 1):
        is_certified = (found.length >= rows).numpy() if rows else found.can_stop.numpy()
        chosen = np.flatnonzero(is_certified)
        if len(chosen) == 0:
            continue
        sent, stops = robots.commands[chosen, :rows], found.stops[chosen, rows].numpy()
        last = sent[:, -1:] if rows else robots.history[chosen, -1:]
        cases = _chosen(robots, chosen)
        held = replace(demands, workspace=None, command_step=None, command_acceleration=None, command_distance=None)
        brake = int((np.abs(np.diff(stops, axis=1)).max((0, 2), initial=0.0) > 0).sum())  # rows that still change
        ways = [(np.concatenate([sent, stops], 1), demands), (np.concatenate([sent, last], 1), held)]
        ways += [(np.concatenate([sent, stops[:, : cut + 1]], 1), held) for cut in range(brake)]
        for way, limits in ways:
            delays = rng.integers(0, assumptions.delay_substeps + 1, (len(chosen), 3 + way.shape[1]))
            inputs = servo.held(way, ticks)
            if assumptions.delay_substeps:
                inputs = servo.late(cases.history, servo_ticks(way, ticks), ticks, _filled(delays, 3 + ticks))
            over = violation(
                limits, period_s, servo, cases.solids, cases.history, way, inputs, cases.true_position,
                cases.true_velocity,
            )  # fmt: skip
            worst[chosen, rows] = np.maximum(worst[chosen, rows], over)
    return worst


def servo_ticks(way: np.ndarray, ticks: int) -> np.ndarray:
    """Extend commands to `ticks` by holding the last one."""
    return np.concatenate([way, np.repeat(way[:, -1:], ticks - way.shape[1], 1)], 1)


def _filled(delays: np.ndarray, ticks: int) -> np.ndarray:
    return np.concatenate([delays, np.repeat(delays[:, -1:], ticks - delays.shape[1], 1)], 1)


def _chosen(robots: Robots, index: np.ndarray) -> Robots:
    parts = (robots.history, robots.commands, robots.position, robots.velocity)
    true = robots.true_position[index], robots.true_velocity[index]
    return Robots(*(part[index] for part in parts), *true, robots.solids.of(index))


@dataclass(frozen=True)
class Outcome:
    """The result for one batch: the worst violation of anything certified, rows certified [B], rows requested."""

    worst: float
    length: np.ndarray
    rows: int


def outcome(seed: int, servo: Servo | None = None) -> Outcome:
    """Certify one random batch and check it densely."""
    rng = np.random.default_rng(seed)
    servo = SERVOS[int(rng.integers(len(SERVOS)))] if servo is None else servo
    demands = random_demands(rng)
    assumptions = random_assumptions(rng, servo, demands.rest_speed)
    if not assumptions.is_exact and demands.speed is not None and rng.random() < 0.5:
        demands = replace(demands, speed=None)
    robots = random_robots(rng, assumptions, servo)
    certifier = Certifier(constraints_of(demands), plant_of(servo), servo.substeps * servo.substep_s, assumptions)
    found = certifier.certify(torch.as_tensor(robots.commands), start_of(robots), obstacles_of(robots.solids))
    worst = worst_of_certified(found, robots, demands, assumptions, servo, seed)
    return Outcome(float(worst.max()), found.length.numpy(), robots.commands.shape[1])
