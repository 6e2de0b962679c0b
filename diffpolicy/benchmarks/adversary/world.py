"""The world of the adversarial benchmark: what robots and obstacles do, and what the controller is told about it.

Everything stays within the assumptions A1 to A5, at their bounds, unless a fault of the scenario says otherwise.

Shape legend: B robots, M obstacles, N milliseconds.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from diffpolicy.benchmarks.adversary.clock import Clock
from diffpolicy.benchmarks.adversary.policy import KINDS, RANGE
from diffpolicy.benchmarks.adversary.scenario import Scenario
from diffpolicy.benchmarks.adversary.servo import MS
from diffpolicy.benchmarks.adversary.solids import Solids, random_solids
from diffpolicy.constraints.planar.obstacles import Obstacles
from diffpolicy.constraints.plant import State
from diffpolicy.safety.surroundings import Surroundings

Array = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
MOST = 1.0 - 1e-9  # of a bound, which rounding must not exceed


@dataclass(frozen=True)
class Motion:
    """What happened between two calls.

    Attributes:
        commands: in force, [B, N, 2].
        positions, velocities: [B, 1 + N, 2].
        share: [B, 1 + N], of the time to each robot's next call; rows above 1 have not happened.
        before, after: the obstacles at shares 0 and 1.
    """

    commands: Array
    positions: Array
    velocities: Array
    share: Array
    before: Solids
    after: Solids


class World:
    """A batch of robots, each among its own obstacles. Call `begin` first, then `sense` and `act` in turns."""

    def __init__(self, scenario: Scenario, robots: int, seed: int) -> None:
        self.scenario, self._random = scenario, np.random.default_rng(seed)
        self.clock = Clock(scenario, robots, self._random)
        self._position, self._velocity = np.zeros((2, robots, 2))
        self._off, self._off_velocity = np.zeros((2, robots, 2))  # of the true state from the plant's
        self._solids = self._new_solids()
        self._goal = np.zeros(robots, dtype=np.intp)  # the obstacle that each policy has in mind
        self._point = np.zeros((robots, 2))  # or this point, if there is no such obstacle

    def begin(self, mask: Flags) -> None:
        """Start new episodes for the robots of `mask` [B]: most of them clear of obstacles, half of them in motion."""
        rng, limits = self._random, self.scenario.limits
        solids = self._new_solids()
        position = self._anywhere()
        for _ in range(30):  # a few stay where they must not be
            gap = solids.distance(position[:, None])[:, 0].min(1) - (limits.distance or 0.0)
            is_bad = np.stack([-gap, *limits.excess_of_position(position).values()]).max(0) > 0
            position = np.where(is_bad[:, None], self._anywhere(), position)
        speed = 0.5 * (limits.speed or 200.0) * rng.random((len(mask), 1)) * (rng.random((len(mask), 1)) < 0.5)
        self._position[mask], self._velocity[mask] = position[mask], (speed * self._directions())[mask]
        for name, part in vars(solids).items():
            getattr(self._solids, name)[mask] = part[mask]
        self.clock.forget(mask)
        self._stray()

    def sense(self) -> tuple[dict[str, Array], Surroundings]:
        """What the policy sees, and what the controller is told."""
        rng, assumed, robots = self._random, self.scenario.assumptions, len(self._position)
        jumped = self._jump(rng.random(robots) < self.scenario.jumps)
        true, moving = self._position + self._off, self._velocity + self._off_velocity
        target, gap = self._aimed_at(true)
        toward = _unit(target - true)
        servo = self.scenario.servo
        carried = true + servo.damping / servo.stiffness * moving  # a command there keeps up the speed
        seen = {"agent": carried, "target": target, "edge": true + gap[:, None] * toward}
        seen["kind"] = (np.arange(robots) % len(KINDS))[:, None].astype(np.float64)
        toward = _unit(self._solids.nearest(true) - true)
        position = true - self._errors(assumed.position_error) * toward
        seeming = np.where(rng.random((robots, 1)) < 0.5, _unit(moving), toward)
        velocity = moving - self._errors(assumed.velocity_error) * seeming
        received = np.concatenate([position, velocity], axis=1)
        lost = np.flatnonzero(rng.random(robots) < self.scenario.dropped)
        received[lost, rng.integers(0, 4, len(lost))] = rng.choice([np.nan, np.inf])
        self.clock.stay(true)
        self.clock.take(np.where(np.isfinite(received).all(1, keepdims=True), position, np.nan))
        now = MS * self.clock.now.astype(np.float64)
        seen["target"] = np.where(rng.random((robots, 1)) < self.scenario.garbage, np.nan, target)
        now[rng.random(robots) < self.scenario.garbage] = rng.choice([np.nan, -np.inf])
        state = State(*torch.from_numpy(received).chunk(2, dim=1))
        return seen, Surroundings(state, self._reported(jumped), now)

    def act(self, actions: Array) -> Motion:
        """Send actions [B, 2], and let time pass until the next call."""
        elapsed = self.clock.send(actions)
        motion = self._moved(elapsed)
        self.clock.advance(elapsed)
        robots = np.arange(len(actions))
        self._position = motion.positions[robots, elapsed] - self._off
        self._velocity = motion.velocities[robots, elapsed] - self._off_velocity
        self._solids = motion.after
        self._stray()
        return motion

    def left_alone(self, ms: int) -> Motion:
        """What would happen if nothing more were sent for so long. The world stays as it is."""
        return self._moved(np.full(len(self._position), ms))

    def _moved(self, elapsed: npt.NDArray[np.int64]) -> Motion:
        """The motion of the next `elapsed` [B] ms."""
        commands = self.clock.in_force(int(elapsed.max()))
        positions, velocities = self.scenario.servo.motion(commands, self._position, self._velocity)
        share = np.arange(positions.shape[1]) / elapsed[:, None]
        after = self._chasing(MS * elapsed.astype(np.float64))
        positions, velocities = positions + self._off[:, None], velocities + self._off_velocity[:, None]
        return Motion(commands, positions, velocities, share, self._solids, after)

    def _chasing(self, seconds: Array) -> Solids:
        """The obstacles some seconds [B] later: as fast as they may be, most of them towards the robot."""
        there, rng = self._solids, self._random
        travel = MOST * there.speed * seconds[:, None]
        toward = _unit(self._position[:, None] - there.vertices.mean(2))
        sideways = np.stack([-toward[..., 1], toward[..., 0]], -1)
        way = np.where(rng.random((*travel.shape, 1)) < 0.7, toward, sideways)
        grows = rng.random(travel.shape) < 0.2  # instead of moving
        vertices = there.vertices + np.where(grows, 0.0, travel)[..., None, None] * way[:, :, None]
        return Solids(vertices, there.radius + np.where(grows, travel, 0.0), there.speed, there.is_used)

    def _aimed_at(self, true: Array) -> tuple[Array, Array]:
        """The point [B, 2] that each policy has in mind, and how far a robot may go towards it [B]."""
        rng, robots = self._random, np.arange(len(true))
        changes = rng.random(len(true)) < 0.12
        self._goal = np.where(changes, rng.integers(0, self.scenario.obstacles, len(true)), self._goal)
        self._point = np.where(changes[:, None], RANGE * rng.random(true.shape), self._point)
        distance = self._solids.distance(true[:, None])[robots, 0, self._goal]
        is_there = np.isfinite(distance)
        target = np.where(is_there[:, None], self._solids.vertices[robots, self._goal].mean(1), self._point)
        return target, np.where(is_there, distance - (self.scenario.limits.distance or 0.0), 100.0)

    def _jump(self, mask: Flags) -> npt.NDArray[np.intp]:
        """One obstacle of each of these robots [B] is suddenly near it, mostly ahead of it, and often a disc.

        Returns its slot [B], or -1.
        """
        there, rng, robots = self._solids, self._random, np.flatnonzero(mask)
        slot = rng.integers(0, self.scenario.obstacles, len(robots))
        ahead = np.where(rng.random((len(mask), 1)) < 0.8, _unit(self._velocity + 1e-9), self._directions())[robots]
        shape = there.vertices[robots, slot] - there.vertices[robots, slot].mean(1, keepdims=True)
        shape *= rng.random((len(robots), 1, 1)) < 0.4
        size = np.linalg.norm(shape, axis=-1).max(-1, initial=0.0)
        gap = rng.uniform(-2.0, 0.3 * np.linalg.norm(self._velocity, axis=-1) + 2.0)[robots]
        reach = (self.scenario.limits.distance or 0.0) + there.radius[robots, slot] + size + gap
        there.vertices[robots, slot] = (self._position[robots] + reach[:, None] * ahead)[:, None] + shape
        there.is_used[robots, slot] = True
        jumped = np.full(len(mask), -1)
        jumped[robots] = slot
        return jumped

    def _reported(self, jumped: npt.NDArray[np.intp]) -> Obstacles | None:
        """The obstacles as measured: in any order, nonsense in empty slots, and NaN, often beside one that jumped."""
        rng, there, nan = self._random, self._solids, self.scenario.nan
        if self.scenario.limits.distance is None:
            return None
        robots, slots = there.radius.shape
        parts = [part.copy() for part in vars(there).values()]
        blind = np.flatnonzero(rng.random(robots) < np.where(jumped >= 0, 3.0 * nan, nan))
        slot = (jumped[blind] + rng.integers(1, max(2, slots), len(blind))) % slots
        for part in parts[:3]:
            part[~there.is_used] = rng.choice([np.nan, -1.0, np.inf])
            hit = rng.random(len(blind)) < 0.5
            part[blind[hit], slot[hit]] = rng.choice([np.nan, np.inf, -1e39])
        order = np.where(rng.random((robots, 1)) < 0.3, rng.random((robots, slots)), 0.0).argsort(1)
        return Obstacles(*(torch.from_numpy(part[np.arange(robots)[:, None], order]) for part in parts))

    def _stray(self) -> None:
        """Where the true state is from the plant's until the next call: nearer to an obstacle, and faster."""
        assumed, rng = self.scenario.assumptions, self._random
        if assumed.tracking_error == 0 or assumed.tracking_velocity_error == 0:
            return
        toward = _unit(self._solids.nearest(self._position) - self._position)
        (pp, pv), (vp, vv) = self.scenario.servo.largest_response()
        # A2 counts from any moment: the error then decays as the plant lets it, beside the error now.
        ratio = assumed.tracking_velocity_error / assumed.tracking_error
        share = MOST / max(1.0 + pp + pv * ratio, 1.0 + vv + vp / ratio)
        self._off = share * assumed.tracking_error * np.where(rng.random((len(toward), 1)) < 0.8, toward, -toward)
        self._off_velocity = share * assumed.tracking_velocity_error * _unit(self._velocity)

    def _errors(self, bound: float) -> Array:
        """[B, 1], mostly the bound."""
        rng, shape = self._random, (len(self._position), 1)
        return bound * np.where(rng.random(shape) < 0.8, MOST, rng.uniform(-MOST, MOST, shape))

    def _new_solids(self) -> Solids:
        wanted = self.scenario
        return random_solids(self._random, len(self._position), wanted.obstacles, wanted.obstacle_speed, wanted.size)

    def _anywhere(self) -> Array:
        return self._random.uniform(20.0, RANGE - 20.0, self._position.shape)

    def _directions(self) -> Array:
        angle = self._random.uniform(0, 2 * np.pi, len(self._position))
        return np.stack([np.cos(angle), np.sin(angle)], -1)


def _unit(vectors: Array) -> Array:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
