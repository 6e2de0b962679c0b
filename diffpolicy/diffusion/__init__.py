"""Diffusion: schedules, training objectives, samplers as tables, guidance, and the reverse loop."""

from diffpolicy.diffusion.guidance import by_classifier, by_cost, classifier_free, compose, inpaint
from diffpolicy.diffusion.objectives.denoising import Denoising, DenoisingConfig
from diffpolicy.diffusion.objectives.objective import Objective
from diffpolicy.diffusion.reverse import reverse
from diffpolicy.diffusion.samplers.ancestral import DdimConfig, DdpmConfig
from diffpolicy.diffusion.samplers.heun import HeunConfig
from diffpolicy.diffusion.samplers.settings import GuidanceConfig, SamplerConfig
from diffpolicy.diffusion.samplers.table import Row, StepTable
from diffpolicy.diffusion.schedule import Levels, Schedule

__all__ = [
    "DdimConfig",
    "DdpmConfig",
    "Denoising",
    "DenoisingConfig",
    "GuidanceConfig",
    "HeunConfig",
    "Levels",
    "Objective",
    "Row",
    "SamplerConfig",
    "Schedule",
    "StepTable",
    "by_classifier",
    "by_cost",
    "classifier_free",
    "compose",
    "inpaint",
    "reverse",
]
