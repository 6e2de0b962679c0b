"""Settings of the env in which a policy is evaluated."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class EnvConfig:
    """The gymnasium env in which the policy is evaluated."""

    id: str
    kwargs: dict[str, Any] = field(default_factory=dict)
    reset_options: dict[str, Any] = field(default_factory=dict)
    max_episode_steps: int | None = None  # None: the env's own limit or, if it has none, 10,000
