"""Multistep consistency sampling: every step goes to the clean end of the path, and back up with fresh noise."""

from dataclasses import dataclass

import numpy as np

from diffpolicy.diffusion.samplers.settings import MapSamplerConfig
from diffpolicy.diffusion.samplers.table import StepTable
from diffpolicy.diffusion.schedule import Levels


@dataclass
class ConsistencySamplerConfig(MapSamplerConfig):
    """Settings of `consistency`."""

    name: str = "consistency"


@dataclass
class FlowMapConfig(MapSamplerConfig):
    """Settings of the sampler flow_map: DDIM's step, with a network that sees where the step ends."""

    name: str = "flow_map"


def consistency(now: Levels) -> StepTable:
    """x = alpha_after * clean + sigma_after * noise (Song et al. 2023, algorithm 1)."""
    after = now.followed_by_clean()
    return StepTable(now, a=np.zeros(len(now)), b=after.alpha, s=after.sigma)
