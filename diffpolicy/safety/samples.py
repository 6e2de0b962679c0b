"""Plans that the policy proposes, and what their certificates say.

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
        shift: [Q], how far the projection moved each plan; see `SafetyProjection`.
        is_open: [Q], whether each plan can continue; see `SafetyProjection`.
        cost_s: seconds spent on the projection of all plans.
    """

    plans: Tensor
    shift: Tensor
    is_open: Tensor
    cost_s: float = 0.0

    @classmethod
    def of(cls, plans: Tensor, projection: SafetyProjection | None) -> "Samples":
        """Proposed plans and the projection used for them, if any. Its further rows, beyond the plans, are padding."""
        count = len(plans)
        if projection is None:
            return cls(plans, torch.zeros(count), torch.ones(count, dtype=torch.bool))
        shift, is_open = projection.shift[:count].cpu().clone(), projection.is_open[:count].cpu().clone()
        return cls(plans, shift, is_open, projection.cost_s)

    @classmethod
    def joined(cls, parts: "Sequence[Samples]") -> "Samples":
        """All parts as one, in order."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            torch.cat([one.plans for one in parts]),
            torch.cat([one.shift for one in parts]),
            torch.cat([one.is_open for one in parts]),
            sum(one.cost_s for one in parts),
        )

    def robots(self, index: Tensor) -> "Samples":
        """The samples of the robots `index`."""
        return Samples(self.plans[index], self.shift[index], self.is_open[index])

    def replaced(self, index: Tensor, other: "Samples") -> "Samples":
        """A copy with the samples of the robots `index` replaced by `other`."""
        plans, shift, is_open = self.plans.clone(), self.shift.clone(), self.is_open.clone()
        plans[index], shift[index], is_open[index] = other.plans, other.shift, other.is_open
        return Samples(plans, shift, is_open)

    def worth(self, found: Certificate) -> Tensor:
        """[Q], how good each plan is: by certified rows, then whether it can continue, then how little it was moved."""
        return 2.0 * found.length.double() + self.is_open.double() - self.shift.double() / (1.0 + self.shift.double())


@dataclass(frozen=True)
class Considered:
    """One sample for each of Q robots, and what the layer found out about it.

    Attributes:
        robots: [Q], indices of the robots.
        samples: one sample per robot.
        found: the certificates of the samples; None if plans are sent without certificates.
        rung: [Q], the rung of each plan if it is certified as a whole.
        doubtful: [D], which of the Q robots need further samples, `Safety.candidates` - 1 each.
    """

    robots: Tensor
    samples: Samples
    found: Certificate | None
    rung: Tensor
    doubtful: Tensor
