"""What all samplers can be told; those with further settings have a dataclass of their own beside their table."""

from dataclasses import dataclass, field


@dataclass
class GuidanceConfig:
    """What steers the samples, besides the observations; the defaults steer nothing."""

    weight: float = 0.0  # classifier-free: (1 + weight) with condition - weight without
    rescale: float = 0.0  # share of the conditional estimate's standard deviation that is restored
    threshold: float = 1.0  # quantile of dynamic thresholding; 1: no more than the data's limits
    epsilon_scale: float = 1.0  # divides the noise estimate


@dataclass
class SamplerConfig:
    """A sampler without further settings, by name.

    Attributes:
        spacing: of the levels that it visits, an entry of `SPACINGS`.
        guidance: what steers the samples besides the observations.
    """

    name: str
    steps: int = 10
    spacing: str = "trailing"
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)
