"""Direct prediction: the network is called on a start without noise, and again on what it returned."""

from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np

from diffpolicy.diffusion.samplers.settings import MapSamplerConfig
from diffpolicy.diffusion.samplers.table import StepTable
from diffpolicy.diffusion.schedule import Levels
from diffpolicy.system.schema import Range


@dataclass
class DirectConfig(MapSamplerConfig):
    """Settings of `direct`.

    Attributes:
        start: standard deviation of the noise that it starts from; 1 for policies that are trained to map noise.
    """

    name: str = "direct"
    start: Annotated[float, Range(least=0.0, most=1e3)] = 0.0


def direct(now: Levels, start: float = 0.0) -> StepTable:
    """x = alpha_after * clean, from zeros or, for a `start` above 0, from noise. No step adds noise.

    With two steps this is the sampler of the minimal iterative policy (much-ado-about-noising, mip/samplers.py).
    """
    zeros = np.zeros(len(now))
    table = StepTable(now, a=zeros, b=now.followed_by_clean().alpha, s=zeros)
    return replace(table, start=start)
