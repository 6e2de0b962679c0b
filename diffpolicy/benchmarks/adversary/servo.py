"""The robots of the adversarial benchmark: servos integrated at 1 kHz, from their differential or difference equation.

Shape legend: B robots, N milliseconds.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from diffpolicy.constraints.plant import LinearPlant

Array = npt.NDArray[np.float64]
MS = 1e-3  # seconds


@dataclass(frozen=True)
class Servo:
    """Acceleration = stiffness * (command - position) - damping * velocity.

    Attributes:
        substep_ms, substeps: the sub-steps that the plant is declared with, and their number per tick.
        is_sampled: whether the servo is computed once per sub-step by semi-implicit Euler, as in the envs: its velocity
            changes at once and is kept for the sub-step. Otherwise it obeys the differential equation at all times.
    """

    stiffness: float
    damping: float
    substep_ms: int
    substeps: int
    is_sampled: bool = False

    @property
    def period_ms(self) -> int:
        return self.substep_ms * self.substeps

    def declared(self) -> LinearPlant:
        """The plant whose sub-steps agree with the servo."""
        h = MS * self.substep_ms
        if self.is_sampled:
            kept, pull = 1.0 - self.damping * h, self.stiffness * h
            a, b = np.array([[1.0 - pull * h, kept * h], [-pull, kept]]), np.array([pull * h, pull])
        else:
            a = _exponential(self._rate * h)
            b = np.array([1.0, 0.0]) - a[:, 0]
        (pp, pv), (vp, vv) = a.tolist()
        drive = float(b[0]), float(b[1])
        return LinearPlant(((pp, pv), (vp, vv)), drive, h, self.substeps)

    def motion(self, commands: Array, position: Array, velocity: Array) -> tuple[Array, Array]:
        """Positions and velocities [B, 1 + N, 2] at every millisecond, for the commands in force [B, N, 2]."""
        positions, velocities = [position], [velocity]
        for ms, command in enumerate(np.moveaxis(commands, 1, 0)):
            if not self.is_sampled:
                off = position - command
                (pp, pv), (vp, vv) = self._per_ms
                position, velocity = command + pp * off + pv * velocity, vp * off + vv * velocity
            else:
                if ms % self.substep_ms == 0:
                    pull = self.stiffness * (command - position) - self.damping * velocity
                    velocity = velocity + MS * self.substep_ms * pull
                position = position + MS * velocity
            positions.append(position)
            velocities.append(velocity)
        return np.stack(positions, 1), np.stack(velocities, 1)

    def largest_response(self) -> Array:
        """[2, 2], the largest position and velocity at any time after a unit position and a unit velocity."""
        steps = np.stack([np.linalg.matrix_power(self._per_ms, n) for n in range(0, 3000, 3)])
        return np.abs(steps).max(0)

    @cached_property
    def _rate(self) -> Array:
        return np.array([[0.0, 1.0], [-self.stiffness, -self.damping]])

    @cached_property
    def _per_ms(self) -> Array:
        return _exponential(self._rate * MS)


def _exponential(matrix: Array) -> Array:
    """The matrix exponential, by its series on a 64th of the matrix."""
    term, total = np.eye(2), np.eye(2)
    for n in range(1, 20):
        term = term @ matrix / (64 * n)
        total = total + term
    return np.linalg.matrix_power(total, 64)
