"""Settings of the env in which a policy is evaluated."""

from dataclasses import dataclass, field
from typing import Annotated, Any

from diffpolicy.system.schema import Range

Episodes = Annotated[int, Range(1, 1_000_000)]
Seed = Annotated[int, Range(0, 4_000_000_000)]  # 32 bits with any episode's number added
InferenceBatch = Annotated[int, Range(1, 2**16)]
Ticks = Annotated[int, Range(1, 1_000_000_000)]


@dataclass
class EnvConfig:
    """The gymnasium env in which the policy is evaluated."""

    id: str
    kwargs: dict[str, Any] = field(default_factory=dict)
    reset_options: dict[str, Any] = field(default_factory=dict)
    max_episode_steps: Ticks | None = None  # None: the env's own limit or, if it has none, 10,000
