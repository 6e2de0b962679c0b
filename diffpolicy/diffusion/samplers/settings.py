"""Settings that all samplers share. Those of a sampler with more inherit from them, next to its table."""

from dataclasses import dataclass, field
from typing import Annotated

from diffpolicy.system.schema import Range


@dataclass
class GuidanceConfig:
    """Guidance of the samples beyond the observations; the defaults turn it off."""

    weight: float = 0.0  # classifier-free: (1 + weight) * conditional - weight * unconditional
    rescale: float = 0.0  # how far to restore the standard deviation of the conditional estimate, 0 to 1
    rescale_of: str = "clean"  # or epsilon, v: what has this standard deviation
    threshold: float = 1.0  # quantile of dynamic thresholding; 1 turns it off
    epsilon_scale: float = 1.0  # divides the noise estimate


@dataclass
class SamplerConfig:
    """The name of a sampler and the settings that all tables share.

    Attributes:
        steps: number of steps.
        spacing: spacing of the levels that it visits, an entry of `SPACINGS`; or "stored", those that
            optimize_steps.py found for the checkpoint.
        guidance: guidance of the samples beyond the observations.
        warm_start: number of last steps that are run where a last plan is known, which is noised to the level of the
            first of them; None draws every plan from noise.
    """

    name: str
    steps: Annotated[int, Range(1, 10_000)] = 10
    spacing: str = "trailing"
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)
    warm_start: Annotated[int | None, Range(1, 10_000)] = None


@dataclass
class MapSamplerConfig(SamplerConfig):
    """Settings of samplers for networks that jump along a path, or to its end, and are no denoisers."""

    steps: Annotated[int, Range(1, 10_000)] = 1
