"""Motion within a sub-step: the smooth motion that a plant's sub-steps are samples of.

    x(s) = exp(s log A) x(0),   x = (distance from the held command, velocity),   0 <= s <= 1 in a sub-step

If A is a servo sampled exactly, this is the servo's own motion. Between two samples the path bulges over its chord, and
the speed may exceed the mean over the sub-step and the speeds at both ends. Both are bounded here from the first value
and the last one of a higher derivative, which determine x: what lies s of the way between two points is off its chord
by at most 4 s (1 - s) times a constant times the larger of the two.

Shape legend: [..., 2] a distance and a velocity, P + 1 points within a sub-step. float64.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

FINE = 0.2  # the fastest mode decays or turns by no more than this, in nepers or radians, from point to point
GRID = 200  # points at which a bound is searched; it is smooth, so that SLACK covers what lies between
SLACK = 1.01


@dataclass(frozen=True)
class Flow:
    """The smooth motion through the samples of a plant.

    Attributes:
        generator: [2, 2], log A, per sub-step.
        accelerations: [2, 2], rows that give the acceleration at the start and at the end of a sub-step.
        bulge: the constant for the position, per unit of the larger acceleration.
        rates: [2, 2], rows that give the derivative of the position there; jolts: [2, 2], its second derivative.
        sag: the constant for that derivative, per unit of the larger second derivative.
        speeds: [P + 1, 2], rows that give the velocity at points in a sub-step, from its start to its end.
        jerks: [P + 1, 2], rows that give its second derivative there.
        excess: the constant for the velocity between two points, per unit of the larger second derivative.
    """

    generator: Tensor
    accelerations: Tensor
    bulge: float
    rates: Tensor
    jolts: Tensor
    sag: float
    speeds: Tensor
    jerks: Tensor
    excess: float

    def later(self, x: Tensor, substeps: Tensor) -> Tensor:
        """[B, 2, A], the distances and velocities x [B, 2, A] so many sub-steps [B] later, or earlier if below 0."""
        return torch.matrix_exp(self.generator * substeps[:, None, None]) @ x

    def bulge_of(self, x: Tensor) -> Tensor:
        """[...], how far the path of a sub-step may be from its chord, for one axis x [..., 2] at its start."""
        return self.bulge * (x @ self.accelerations.mT).abs().amax(-1)

    def speed_of(self, x: Tensor) -> Tensor:
        """[...], the largest speed in a sub-step, for one axis x [..., 2] at its start."""
        return (x @ self.speeds.mT).abs().amax(-1) + self.excess * (x @ self.jerks.mT).abs().amax(-1)


@lru_cache(maxsize=16)
def flow(transition: tuple[tuple[float, float], tuple[float, float]], substep_s: float) -> Flow | None:
    """The motion of a plant with this transition; None if it has none (it changes sign from sub-step to sub-step).

    A motion that turns by more than half a circle per sub-step cannot be told from a slower one by its samples.
    """
    whole = torch.tensor(transition, dtype=torch.float64)
    generator = _logarithm(whole)
    if generator is None:
        return None
    rate = generator / substep_s
    points = max(1, int(-(-float(torch.linalg.eigvals(generator).abs().max()) // FINE)))
    (acceleration, jerk), jolt = (rate @ rate).unbind(), (rate @ rate @ rate)[0]
    steps = torch.stack([torch.matrix_exp(generator * i / points) for i in range(points + 1)])
    position, velocity = torch.eye(2, dtype=torch.float64).unbind()
    return Flow(
        generator,
        torch.stack([acceleration, acceleration @ whole]),
        _off_chord(position, acceleration, generator),
        torch.stack([rate[0], rate[0] @ whole]),
        torch.stack([jolt, jolt @ whole]),
        _off_chord(rate[0], jolt, generator),
        velocity @ steps,
        jerk @ steps,
        _off_chord(velocity, jerk, generator / points),
    )


def _off_chord(row: Tensor, second: Tensor, generator: Tensor) -> float:
    """How far row . x(s) may be from its chord, over 4 s (1 - s) and the larger of second . x(0) and second . x(1)."""
    last = torch.matrix_exp(generator)
    share = torch.linspace(0.0, 1.0, GRID + 1, dtype=torch.float64)[1:-1, None]
    path = torch.stack([row @ torch.matrix_exp(float(s) * generator) for s in share])
    off = path - (1.0 - share) * row - share * (row @ last)  # [GRID - 1, 2], on x(0)
    ends = torch.stack([second, second @ last])
    weights = torch.linalg.lstsq(ends.mT, off.mT).solution  # off = weights . ends
    return SLACK * float((weights.abs().sum(0) / (4.0 * share * (1.0 - share))[:, 0]).max())


def _logarithm(matrix: Tensor) -> Tensor | None:
    """The real logarithm of a [2, 2] matrix without eigenvalues at or below 0, by Sylvester's formula; else None."""
    ((a, b), (c, d)) = matrix.tolist()
    middle, square = (a + d) / 2.0, ((a - d) / 2.0) ** 2 + b * c
    half = math.sqrt(abs(square))
    if square < 0.0:  # the eigenvalues are middle +- i half, and the motion turns by this angle
        slope = math.atan2(half, middle) / half
        offset = math.log(math.hypot(middle, half)) - slope * middle
    elif middle - half <= 0.0:
        return None
    else:
        slope = math.log1p(2.0 * half / (middle - half)) / (2.0 * half) if half > 0.0 else 1.0 / middle
        offset = math.log(middle - half) - slope * (middle - half)
    found = torch.eye(2, dtype=torch.float64) * offset + matrix * slope
    return found if torch.allclose(torch.matrix_exp(found), matrix, rtol=0.0, atol=1e-9) else None
