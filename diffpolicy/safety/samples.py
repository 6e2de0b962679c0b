"""Plans that the policy proposes, and what the certificates say about them.

Shape legend: Q plans, H rows of a plan from the present on, A action.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffpolicy.constraints.certificate import Certificate
from diffpolicy.safety.projection import SafetyProjection


@dataclass(frozen=True)
class Samples:
    """One plan for each of Q robots.

    Attributes:
        plans: [Q, H, A], on the CPU.
        shift: how far the projection moved each, [Q]; see `SafetyProjection`.
        is_open: whether each leads on, [Q].
        cost_s: of the projection, all together.
    """

    plans: Tensor
    shift: Tensor
    is_open: Tensor
    cost_s: float = 0.0

    @classmethod
    def of(cls, plans: Tensor, projection: SafetyProjection | None) -> "Samples":
        """Proposed plans, with or without the projection that was used; the rows that it has besides are padding."""
        count = len(plans)
        if projection is None:
            return cls(plans, torch.zeros(count), torch.ones(count, dtype=torch.bool))
        shift, is_open = projection.shift[:count].cpu().clone(), projection.is_open[:count].cpu().clone()
        return cls(plans, shift, is_open, projection.cost_s)

    @classmethod
    def joined(cls, parts: "Sequence[Samples]") -> "Samples":
        """All of them, in order."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            torch.cat([one.plans for one in parts]),
            torch.cat([one.shift for one in parts]),
            torch.cat([one.is_open for one in parts]),
            sum(one.cost_s for one in parts),
        )

    def robots(self, index: Tensor) -> "Samples":
        """Those of the robots `index`."""
        return Samples(self.plans[index], self.shift[index], self.is_open[index])

    def replaced(self, index: Tensor, other: "Samples") -> "Samples":
        """With those of the robots `index` replaced."""
        plans, shift, is_open = self.plans.clone(), self.shift.clone(), self.is_open.clone()
        plans[index], shift[index], is_open[index] = other.plans, other.shift, other.is_open
        return Samples(plans, shift, is_open)

    def worth(self, found: Certificate) -> Tensor:
        """[Q]: by certified rows, then whether they lead on, then how little they were moved."""
        return 2.0 * found.length.double() + self.is_open.double() - self.shift.double() / (1.0 + self.shift.double())


@dataclass(frozen=True)
class Considered:
    """One sample for each of Q robots, and what the layer found out about it.

    Attributes:
        robots: [Q].
        samples: of them.
        found: their certificates; None where plans are sent without.
        rung: of the ladder [Q], for a plan that is certified as a whole.
        doubtful: [D], which of the Q need other samples, `Safety.candidates` - 1 each.
    """

    robots: Tensor
    samples: Samples
    found: Certificate | None
    rung: Tensor
    doubtful: Tensor
