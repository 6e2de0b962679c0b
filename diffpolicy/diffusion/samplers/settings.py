"""What all samplers can be told; those with further settings have a dataclass of their own beside their table."""

from dataclasses import dataclass, field

from diffpolicy.diffusion.guidance import GuidanceConfig


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
