"""From names in settings to objects: the tables in which every choice is an entry."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import nn

from diffpolicy.diffusion import guidance, parameterization, schedules, weighting
from diffpolicy.diffusion.diffusers_sampler import DiffusersSampler
from diffpolicy.diffusion.guidance import Guide
from diffpolicy.diffusion.objectives.denoising import Objective
from diffpolicy.diffusion.parameterization import Parameterization
from diffpolicy.diffusion.samplers import ancestral, heun, langevin, multistep
from diffpolicy.diffusion.samplers.table import StepTable
from diffpolicy.diffusion.schedule import Levels, Schedule
from diffpolicy.diffusion.spacing import SPACINGS
from diffpolicy.diffusion.weighting import LevelDistribution, Weighting
from diffpolicy.networks.backbones.unet1d import UNet1d
from diffpolicy.policy.settings import (
    DiffusionConfig,
    GuidanceConfig,
    ModelConfig,
    PolicyConfig,
    SamplerConfig,
    WindowConfig,
)

Entry = TypeVar("Entry")
Sampler = StepTable | DiffusersSampler

SCHEDULES: Mapping[str, Callable[[DiffusionConfig], Schedule]] = {
    "linear": lambda config: schedules.linear(config.num_levels, config.beta_start, config.beta_end),
    "scaled_linear": lambda config: schedules.scaled_linear(config.num_levels, config.beta_start, config.beta_end),
    "cosine": lambda config: schedules.cosine(config.num_levels),
    "sigmoid": lambda config: schedules.sigmoid(config.num_levels),
    "vp": lambda config: schedules.vp(config.num_levels),
    "ve": lambda config: schedules.ve(config.num_levels, config.sigma_min, config.sigma_max, config.sigma_data),
    "karras": lambda config: schedules.karras(config.num_levels, config.sigma_min, config.sigma_max, config.sigma_data),
    "flow": lambda config: schedules.flow(config.num_levels),
}

PARAMETERIZATIONS: Mapping[str, Callable[[DiffusionConfig], Parameterization]] = {
    "epsilon": lambda config: parameterization.EPSILON,
    "clean": lambda config: parameterization.CLEAN,
    "v": lambda config: parameterization.V,
    "score": lambda config: parameterization.SCORE,
    "flow": lambda config: parameterization.FLOW,
    "edm": lambda config: parameterization.edm(config.sigma_data),
}

WEIGHTINGS: Mapping[str, Callable[[DiffusionConfig], Weighting]] = {
    "simple": lambda config: weighting.simple,
    "elbo": lambda config: weighting.elbo,
    "snr": lambda config: weighting.snr,
    "min_snr": lambda config: weighting.min_snr(),
    "p2": lambda config: weighting.p2(),
    "edm": lambda config: weighting.edm(config.sigma_data),
}

LEVEL_DISTRIBUTIONS: Mapping[str, LevelDistribution] = {
    "uniform": weighting.uniform,
    "log_normal": weighting.log_normal(-1.2, 1.2),  # Karras et al. 2022
    "logit_normal": weighting.log_normal(0.0, 1.0),  # Esser et al. 2024
}

SAMPLERS: Mapping[str, Callable[[Schedule, Levels, SamplerConfig], StepTable]] = {
    "ddpm": lambda schedule, now, config: ancestral.ddpm(now, config.variance),
    "ddim": lambda schedule, now, config: ancestral.ddim(now, config.eta),
    "euler": lambda schedule, now, config: ancestral.ddim(now),
    "flow_euler": lambda schedule, now, config: ancestral.ddim(now),
    "dpmpp_2m": lambda schedule, now, config: multistep.dpmpp_2m(now),
    "dpmpp_2m_sde": lambda schedule, now, config: multistep.dpmpp_2m_sde(now),
    "unipc": lambda schedule, now, config: multistep.unipc(now),
    "heun": lambda schedule, now, config: heun.heun(now, schedule, config.churn),
    "flow_heun": lambda schedule, now, config: heun.flow_heun(now),
    "reverse_sde": lambda schedule, now, config: langevin.reverse_sde(now),
    "predictor_corrector": lambda schedule, now, config: langevin.predictor_corrector(
        now, **_given({"corrector_steps": config.langevin_steps, "rate": config.langevin_rate})
    ),
    "langevin": lambda schedule, now, config: langevin.langevin(
        now, **_given({"steps_per_level": config.langevin_steps, "rate": config.langevin_rate})
    ),
}

SPACING_OF: Mapping[str, str] = {  # trailing for the others
    "heun": "log_snr",  # evenly spaced levels would begin with a jump over most of the noise: its mean slope overshoots
}

MODELS: Mapping[str, Callable[[int, int, ModelConfig], nn.Module]] = {
    "unet1d": lambda action_dim, condition_dim, config: UNet1d(
        action_dim, condition_dim, config.widths, config.time_embedding_dim, config.kernel_size, config.groups
    ),
}


def lookup(table: Mapping[str, Entry], kind: str, name: str) -> Entry:
    """The entry of that name.

    Raises:
        ValueError: there is none; the message lists those there are.
    """
    if name not in table:
        raise ValueError(f"{kind}: {name!r} is unknown, expected one of {', '.join(sorted(table))}")
    return table[name]


def build_objective(config: DiffusionConfig) -> Objective:
    """The objective whose parts are named in the settings."""
    schedule = lookup(SCHEDULES, "schedule", config.schedule)(config)
    return Objective(
        schedule=schedules.zero_terminal_snr(schedule) if config.zero_terminal_snr else schedule,
        parameterization=lookup(PARAMETERIZATIONS, "parameterization", config.parameterization)(config),
        weighting=lookup(WEIGHTINGS, "weighting", config.weighting)(config),
        levels=lookup(LEVEL_DISTRIBUTIONS, "level_distribution", config.level_distribution),
    )


def build_sampler(schedule: Schedule, config: SamplerConfig) -> Sampler:
    """The sampler's table on this schedule, or the adapter of a scheduler of diffusers."""
    if config.name == "diffusers":
        return DiffusersSampler(config.scheduler, config.scheduler_options or {}, schedule, config.steps)
    sampler = lookup(SAMPLERS, "sampler", config.name)
    spacing = config.spacing or SPACING_OF.get(config.name, "trailing")
    return sampler(schedule, lookup(SPACINGS, "spacing", spacing)(schedule, config.steps), config)


def _given(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that are not left open (None); for the others the callee's own defaults hold."""
    return {name: value for name, value in settings.items() if value is not None}


def build_guide(config: GuidanceConfig) -> Guide | None:
    """The guidance whose settings differ from their neutral values, thresholding last; None if none do."""
    neutral, guides = GuidanceConfig(), list[Guide]()
    if config.rescale != neutral.rescale and config.weight == neutral.weight:
        raise ValueError(f"guidance: rescale {config.rescale} needs a weight, which is {config.weight}")
    if config.weight != neutral.weight:
        guides.append(guidance.classifier_free(config.weight, config.rescale))
    if config.epsilon_scale != neutral.epsilon_scale:
        guides.append(guidance.epsilon_scaling(config.epsilon_scale))
    if config.threshold != neutral.threshold:
        guides.append(guidance.dynamic_threshold(config.threshold))
    return guidance.compose(*guides) if guides else None


def build_network(config: PolicyConfig, condition_dim: int) -> nn.Module:
    """The denoising network for the policy's actions."""
    check_window(config.window, downsamplings=len(config.model.widths) - 1)
    return lookup(MODELS, "model", config.model.name)(config.action_dim, condition_dim, config.model)


def check_window(window: WindowConfig, downsamplings: int) -> None:
    """Raise ValueError unless the steps fit into the horizon, and the horizon into the network."""
    for name in ("horizon", "n_obs_steps", "n_action_steps"):
        if getattr(window, name) < 1:
            raise ValueError(f"window: {name} {getattr(window, name)} must be at least 1")
    factor = 2**downsamplings
    if window.horizon % factor:
        raise ValueError(
            f"window: horizon {window.horizon} must be divisible by {factor} ({downsamplings} down-samplings)"
        )
    needed = window.n_obs_steps - 1 + window.n_action_steps
    if needed > window.horizon:
        raise ValueError(
            f"window: horizon {window.horizon} must be at least n_obs_steps - 1 + n_action_steps = {needed}"
        )
