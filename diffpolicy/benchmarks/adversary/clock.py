"""When calls come and when their actions take effect: as late and as irregularly as A5 allows, and later.

Shape legend: B robots, N milliseconds.
"""

import numpy as np
import numpy.typing as npt

from diffpolicy.benchmarks.adversary.scenario import Scenario

Array = npt.NDArray[np.float64]
Times = npt.NDArray[np.int64]
NEVER = np.iinfo(np.int64).max


class Clock:
    """The time of each robot, in ms, and the commands on their way to it.

    Attributes:
        now: [B], the time of this call.
    """

    def __init__(self, scenario: Scenario, robots: int, random: np.random.Generator) -> None:
        servo, assumed = scenario.servo, scenario.assumptions
        self._random, self._share_late = random, scenario.late
        self._grain = servo.substep_ms if servo.is_sampled else 1  # a sampled servo reads commands once per sub-step
        self._delay, self._latency, self._period = assumed.delay_substeps * servo.substep_ms, 0, servo.period_ms
        self._latency = int(1e3 * assumed.latency_s + 1e-6) // self._grain * self._grain
        self.now = np.zeros(robots, dtype=np.int64)
        self._tick = self.now  # that the call serves; a call may come later than its tick
        self._command = np.zeros((robots, 2))  # in force now
        self._is_new = np.ones(robots, dtype=bool)  # whether nothing was measured in this episode yet
        self._coming: list[tuple[Times, Array]] = []  # when it takes effect, and the command

    def forget(self, mask: npt.NDArray[np.bool_]) -> None:
        """New episodes begin for the robots of `mask` [B]."""
        self._is_new |= mask
        self._coming = [(np.where(mask, NEVER, due), command) for due, command in self._coming]

    def take(self, position: Array) -> None:
        """The command in force when an episode begins is the first position [B, 2] that is measured (A4)."""
        self._command = np.where((self._is_new & np.isfinite(position).all(1))[:, None], position, self._command)
        self._is_new &= ~np.isfinite(position).all(1)

    def stay(self, position: Array) -> None:
        """Until then, robots stay at the command that their position is."""
        self._command = np.where(self._is_new[:, None], position, self._command)

    def send(self, commands: Array) -> Times:
        """Send commands [B, 2]; NaN is none. Returns the time [B] until the next call."""
        rng, robots = self._random, len(commands)
        latest = np.maximum(self._tick + self._delay, self.now)
        between = self.now + self._grains(rng.random(robots), latest - self.now)
        due = np.choose(rng.choice(3, robots, p=[0.3, 0.5, 0.2]), [self.now, latest, between])
        self._coming.append((np.where(np.isfinite(commands).all(1), due, NEVER), commands))
        jitter = self._grains(np.minimum(2.0 * rng.random(robots), 1.0), self._latency)
        later = self._latency + self._grain + self._grains(rng.random(robots), 2 * self._period)
        is_late = rng.random(robots) < self._share_late
        next_tick = self._tick + self._period
        following = np.maximum(next_tick + np.where(is_late, later, jitter), self.now + self._grain)
        self._next_tick = np.where(is_late, following, next_tick)  # whoever is late begins to count anew
        return following - self.now

    def in_force(self, ms: int) -> Array:
        """[B, N, 2], the command in force in each of the next milliseconds: the newest that has come."""
        time = self.now[:, None] + np.arange(ms)
        commands = np.repeat(self._command[:, None], ms, axis=1)
        for due, command in self._coming:
            commands = np.where((time >= due[:, None])[..., None], command[:, None], commands)
        return commands

    def advance(self, elapsed: Times) -> None:
        """The next call comes after `elapsed` [B], as `send` said."""
        after = self.now + elapsed
        for due, command in self._coming:
            has_come = due < after
            self._command = np.where(has_come[:, None], command, self._command)
        self.now, self._tick = after, self._next_tick
        horizon = after - 4 * self._period - self._delay
        self._coming = [(due, command) for due, command in self._coming if ((due > horizon) & (due < NEVER)).any()]

    def _grains(self, share: Array, ms: Times | int) -> Times:
        return (share * ms).astype(np.int64) // self._grain * self._grain
