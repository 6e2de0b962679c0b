"""A slow check of what a certificate promises: plain numpy loops over sub-steps, with samples along every segment.

Nothing here calls the code under test. Results are the amounts by which a limit is violated; at most 0 is allowed.

Shape legend: B cases, T ticks, R sub-steps, M obstacles, V vertices.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Servo:
    """Acceleration stiffness * (command - position) - damping * velocity, semi-implicit Euler."""

    stiffness: float
    damping: float
    substep_s: float
    substeps: int

    def motion(self, inputs: Array, position: Array, velocity: Array) -> tuple[Array, Array]:
        """Positions and velocities [B, 1 + R, 2] from the present on, for one command per sub-step [B, R, 2]."""
        positions, velocities = [position], [velocity]
        for command in np.moveaxis(inputs, 1, 0):
            velocity = velocity + self.substep_s * (self.stiffness * (command - position) - self.damping * velocity)
            position = position + self.substep_s * velocity
            positions.append(position)
            velocities.append(velocity)
        return np.stack(positions, 1), np.stack(velocities, 1)

    def held(self, commands: Array, ticks: int) -> Array:
        """Expand commands [B, T, 2] to one per sub-step [B, R, 2], holding the last one up to `ticks`."""
        rest = np.repeat(commands[:, -1:], max(0, ticks - commands.shape[1]), axis=1)
        return np.repeat(np.concatenate([commands, rest], 1), self.substeps, axis=1)

    def late(self, history: Array, commands: Array, ticks: int, delays: npt.NDArray[np.int64]) -> Array:
        """Like `held`, but each command arrives after its own delay [B, 3 + T]; the newest one to arrive is in force.

        `history` [B, 3, 2] was sent in the ticks before the present.
        """
        sent = np.concatenate([history, commands], 1)
        index = np.arange(sent.shape[1])
        due = (index - history.shape[1]) * self.substeps + np.where(index == 0, 0, delays)
        has_come = due[:, None] <= np.arange(ticks * self.substeps)[:, None]  # [B, R, 3 + T]
        newest = np.where(has_come, index, 0).max(-1)
        return sent[np.arange(len(sent))[:, None], newest]


@dataclass(frozen=True)
class Solids:
    """Convex polygons [B, M, V, 2] with rounded corners, which may move at up to `speed`."""

    vertices: Array
    radius: Array
    speed: Array
    is_used: npt.NDArray[np.bool_]

    def of(self, case: npt.NDArray[np.intp]) -> "Solids":
        return Solids(self.vertices[case], self.radius[case], self.speed[case], self.is_used[case])

    def distance(self, points: Array) -> Array:
        """Distances [B, N, M] from points [B, N, 2] to the obstacles at the present; inf for unused slots."""
        p = points[:, :, None, None]
        a = self.vertices[:, None]
        b = np.roll(a, -1, axis=-2)
        along = b - a
        length2 = (along**2).sum(-1)
        share = np.clip(((p - a) * along).sum(-1) / np.maximum(length2, 1e-300), 0.0, 1.0)
        outside = np.sqrt(((a + share[..., None] * along - p) ** 2).sum(-1)).min(-1)
        side = along[..., 0] * (p - a)[..., 1] - along[..., 1] * (p - a)[..., 0]
        has_area = np.abs(_area(self.vertices))[:, None] > 1e-12
        is_inside = has_area & ((side >= 0).all(-1) | (side <= 0).all(-1))
        return np.where(self.is_used[:, None], np.where(is_inside, 0.0, outside) - self.radius[:, None], np.inf)


def _area(vertices: Array) -> Array:
    x, y = vertices[..., 0], vertices[..., 1]
    return (x * np.roll(y, -1, -1) - y * np.roll(x, -1, -1)).sum(-1) / 2


@dataclass(frozen=True)
class Demands:
    """The limits of one set of cases; None means no limit."""

    workspace: tuple[float, float] | None = None  # of commands
    command_step: float | None = None  # speed of commands, units/s
    command_acceleration: float | None = None
    speed: float | None = None  # of the motion
    distance: float | None = None  # of the motion from obstacles
    command_distance: float | None = None
    rest_speed: float = 0.05
    extra: dict[str, float] = field(default_factory=dict)


SAMPLES = 20  # per segment
QUIET_SPEED = 1e-3  # units/s; once all robots stay below it, only every tenth sub-step is checked
QUIET_STRIDE = 10


def violation(
    demands: Demands,
    period_s: float,
    servo: Servo,
    solids: Solids,
    history: Array,
    commands: Array,
    inputs: Array,
    position: Array,
    velocity: Array,
) -> Array:
    """The worst violation of any limit in each case [B]; commands [B, T, 2] as sent, inputs as they take effect."""
    worst = np.full(len(commands), -np.inf)
    sent = np.concatenate([history, commands], 1)
    if demands.workspace is not None:
        low, high = demands.workspace
        worst = np.maximum(worst, np.maximum(low - commands, commands - high).max((1, 2)))
    for limit, order in ((demands.command_step, 1), (demands.command_acceleration, 2)):
        if limit is not None:
            rows = np.diff(sent, n=order, axis=1)[:, 3 - order :] / period_s**order
            worst = np.maximum(worst, np.linalg.norm(rows, axis=-1).max(1) - limit)
    if demands.command_distance is not None:
        path = np.concatenate([history[:, -1:], commands], 1)
        still = np.full(path.shape[:2], np.inf)
        worst = np.maximum(worst, _closeness(path, still, period_s, solids, demands.command_distance, 0.0))
    if demands.speed is not None or demands.distance is not None:
        path, velocities = servo.motion(inputs, position, velocity)
        speeds = np.linalg.norm(velocities, axis=-1)
        mean = np.linalg.norm(np.diff(path, axis=1), axis=-1) / servo.substep_s
        # The speed of a sub-step: the largest of both ends and the mean.
        over_all = np.concatenate([speeds[:, :1], np.maximum(np.maximum(speeds[:, 1:], speeds[:, :-1]), mean)], axis=1)
        if demands.speed is not None:
            worst = np.maximum(worst, speeds[:, 1:].max(1) - demands.speed)
        if demands.distance is not None:
            near = _closeness(path, over_all, servo.substep_s, solids, demands.distance, demands.rest_speed)
            worst = np.maximum(worst, near)
    return worst


def _closeness(path: Array, speeds: Array, step_s: float, solids: Solids, distance: float, rest_speed: float) -> Array:
    """How much closer [B] than `distance` any sample of a path [B, 1 + R, 2] comes to any obstacle.

    An obstacle may be anywhere that its speed allows. While the robot stands still, moving obstacles do not count.
    """
    rows = np.arange(1, path.shape[1])
    moving = (speeds[:, 1:] > QUIET_SPEED).any(0)
    busy = int(np.flatnonzero(moving).max()) + 1 if moving.any() else 0
    rows = rows[(rows <= busy) | (rows % QUIET_STRIDE == 0)]
    start, end, at_end = path[:, rows - 1], path[:, rows], speeds[:, rows]

    def gap(case: Array, start: Array, end: Array, at_end: Array, row: Array, share: float) -> Array:
        points = (1 - share) * start + share * end
        grown = solids.speed[case][:, None] * (step_s * (row - 1 + share))[..., None]
        stands = (at_end[..., None] <= rest_speed) & (solids.speed[case][:, None] > 0)
        return np.where(stands, np.inf, solids.of(case).distance(points) - grown).min(-1, initial=np.inf)

    every = np.arange(len(path))
    ends = gap(every, start, end, at_end, np.broadcast_to(rows, at_end.shape), 1.0)
    near, segment = np.nonzero(ends - np.linalg.norm(end - start, axis=-1) < distance + 0.1)  # others stay clear
    closest = np.full(ends.shape, np.inf)
    for share in (np.arange(SAMPLES - 1) + 1) / SAMPLES:
        parts = (part[near, segment][:, None] for part in (start, end, at_end))
        np.minimum.at(closest, (near, segment), gap(near, *parts, rows[segment][:, None], share)[:, 0])
    return distance - np.minimum(ends, closest).min(1)
