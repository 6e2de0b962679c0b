"""How long to wait for what may hang."""

from dataclasses import dataclass
from typing import Annotated

from diffpolicy.system.schema import Range

Seconds = Annotated[float, Range(above=0, most=1_000_000)]


@dataclass
class LimitsConfig:
    """Seconds after which something that does not answer counts as hung, and ends the run with an error."""

    env_s: Seconds = 600.0  # a tick of an evaluation: the plan, and a step or reset of every env
    data_s: Seconds = 600.0  # a batch or demonstration from a worker process
    ranks_s: Seconds = 1800.0  # the other processes of torchrun
