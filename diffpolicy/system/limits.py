"""How long to wait for what may hang."""

import math
from dataclasses import dataclass, fields


@dataclass
class LimitsConfig:
    """Seconds after which something that does not answer counts as hung, and ends the run with an error."""

    env_s: float = 600.0  # a tick of an evaluation: the plan, and a step or reset of every env
    data_s: float = 600.0  # a batch or demonstration from a worker process
    ranks_s: float = 1800.0  # the other processes of torchrun

    def check(self) -> None:
        """Raise ValueError unless all are above 0 and finite."""
        for name in (field.name for field in fields(self)):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"limits: {name} {getattr(self, name)} must be above 0 and finite")
