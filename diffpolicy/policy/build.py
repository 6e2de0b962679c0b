"""From names in settings to objects: the tables in which every choice is an entry."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

from torch import nn

from diffpolicy.codecs.normalizer import Normalizer
from diffpolicy.diffusion import parameterization, schedules, weighting
from diffpolicy.diffusion.diffusers_sampler import DiffusersConfig, DiffusersSampler
from diffpolicy.diffusion.objectives.denoising import Denoising, DenoisingConfig
from diffpolicy.diffusion.parameterization import EdmConfig, Parameterization
from diffpolicy.diffusion.samplers import ancestral, heun, langevin, multistep
from diffpolicy.diffusion.samplers.ancestral import DdimConfig, DdpmConfig
from diffpolicy.diffusion.samplers.heun import HeunConfig
from diffpolicy.diffusion.samplers.langevin import LangevinConfig, PredictorCorrectorConfig
from diffpolicy.diffusion.samplers.settings import SamplerConfig
from diffpolicy.diffusion.samplers.table import StepTable
from diffpolicy.diffusion.schedule import Levels, Schedule
from diffpolicy.diffusion.schedules import BetasConfig, SigmasConfig
from diffpolicy.diffusion.spacing import SPACINGS
from diffpolicy.diffusion.weighting import (
    LevelDistribution,
    LogitNormalConfig,
    LogNormalConfig,
    MinSnrConfig,
    P2Config,
    Weighting,
)
from diffpolicy.networks.backbones.unet1d import UNet1d, UNet1dConfig
from diffpolicy.networks.condition import ConditionShape
from diffpolicy.networks.encoders.low_dim import LowDimEncoder
from diffpolicy.policy.settings import PolicyConfig
from diffpolicy.system.tables import Choice, Entry, NameOnly, lookup, made, settings_of

Sampler = StepTable | DiffusersSampler


class SpacedConfig(Protocol):
    """What the settings of every sampler that is a table have."""

    steps: int
    spacing: str


SCHEDULES: Mapping[str, Entry[Schedule]] = {  # made from settings and number of levels
    "linear": Entry(BetasConfig, lambda own, levels: schedules.linear(levels, own.beta_start, own.beta_end)),
    "scaled_linear": Entry(
        BetasConfig, lambda own, levels: schedules.scaled_linear(levels, own.beta_start, own.beta_end)
    ),
    "cosine": Entry(NameOnly, lambda own, levels: schedules.cosine(levels)),
    "sigmoid": Entry(NameOnly, lambda own, levels: schedules.sigmoid(levels)),
    "vp": Entry(NameOnly, lambda own, levels: schedules.vp(levels)),
    "ve": Entry(SigmasConfig, lambda own, levels: schedules.ve(levels, own.sigma_min, own.sigma_max, own.sigma_data)),
    "karras": Entry(
        SigmasConfig, lambda own, levels: schedules.karras(levels, own.sigma_min, own.sigma_max, own.sigma_data)
    ),
    "flow": Entry(NameOnly, lambda own, levels: schedules.flow(levels)),
}

PARAMETERIZATIONS: Mapping[str, Entry[Parameterization]] = {
    "epsilon": Entry(NameOnly, lambda own: parameterization.EPSILON),
    "clean": Entry(NameOnly, lambda own: parameterization.CLEAN),
    "v": Entry(NameOnly, lambda own: parameterization.V),
    "score": Entry(NameOnly, lambda own: parameterization.SCORE),
    "flow": Entry(NameOnly, lambda own: parameterization.FLOW),
    "edm": Entry(EdmConfig, lambda own: parameterization.edm(own.sigma_data)),
}

WEIGHTINGS: Mapping[str, Entry[Weighting]] = {
    "simple": Entry(NameOnly, lambda own: weighting.simple),
    "elbo": Entry(NameOnly, lambda own: weighting.elbo),
    "snr": Entry(NameOnly, lambda own: weighting.snr),
    "min_snr": Entry(MinSnrConfig, lambda own: weighting.min_snr(own.gamma)),
    "p2": Entry(P2Config, lambda own: weighting.p2(own.gamma, own.k)),
    "edm": Entry(EdmConfig, lambda own: weighting.edm(own.sigma_data)),
}

LEVEL_DISTRIBUTIONS: Mapping[str, Entry[LevelDistribution]] = {
    "uniform": Entry(NameOnly, lambda own: weighting.uniform),
    "log_normal": Entry(LogNormalConfig, lambda own: weighting.log_normal(own.mean, own.std)),
    "logit_normal": Entry(LogitNormalConfig, lambda own: weighting.log_normal(own.mean, own.std)),
}

DENOISING_CHOICES: Mapping[str, Mapping[str, Entry[Any]]] = {
    "schedule": SCHEDULES,
    "parameterization": PARAMETERIZATIONS,
    "weighting": WEIGHTINGS,
    "level_distribution": LEVEL_DISTRIBUTIONS,
}

OBJECTIVES: Mapping[str, Entry[Any]] = {"denoising": Entry(DenoisingConfig, lambda own: _denoising(own))}


def _table(settings: type, make: Callable[[Levels, Schedule, Any], StepTable]) -> Entry[Sampler]:
    """A sampler that is a table, from the levels that it starts from, the schedule and its settings."""

    def from_schedule(own: SpacedConfig, schedule: Schedule) -> StepTable:
        return make(lookup(SPACINGS, "spacing", own.spacing)(schedule, own.steps), schedule, own)

    return Entry(settings, from_schedule)


TABLES: Mapping[str, Entry[Sampler]] = {  # made from settings and schedule
    "ddpm": _table(DdpmConfig, lambda now, schedule, own: ancestral.ddpm(now, own.variance)),
    "ddim": _table(DdimConfig, lambda now, schedule, own: ancestral.ddim(now, own.eta)),
    "euler": _table(SamplerConfig, lambda now, schedule, own: ancestral.ddim(now)),
    "flow_euler": _table(SamplerConfig, lambda now, schedule, own: ancestral.ddim(now)),
    "dpmpp_2m": _table(SamplerConfig, lambda now, schedule, own: multistep.dpmpp_2m(now)),
    "dpmpp_2m_sde": _table(SamplerConfig, lambda now, schedule, own: multistep.dpmpp_2m_sde(now)),
    "unipc": _table(SamplerConfig, lambda now, schedule, own: multistep.unipc(now)),
    "heun": _table(HeunConfig, lambda now, schedule, own: heun.heun(now, schedule, own.churn)),
    "flow_heun": _table(SamplerConfig, lambda now, schedule, own: heun.flow_heun(now)),
    "reverse_sde": _table(SamplerConfig, lambda now, schedule, own: langevin.reverse_sde(now)),
    "predictor_corrector": _table(
        PredictorCorrectorConfig,
        lambda now, schedule, own: langevin.predictor_corrector(now, own.langevin_steps, own.langevin_rate),
    ),
    "langevin": _table(
        LangevinConfig, lambda now, schedule, own: langevin.langevin(now, own.langevin_steps, own.langevin_rate)
    ),
}

SAMPLERS: Mapping[str, Entry[Sampler]] = {
    **TABLES,
    "diffusers": Entry(
        DiffusersConfig,
        lambda own, schedule: DiffusersSampler(own.scheduler, own.scheduler_options or {}, schedule, own.steps),
    ),
}

BACKBONES: Mapping[str, Entry[nn.Module]] = {  # made from settings, encoded shape and shape of the condition
    "unet1d": Entry(UNet1dConfig, UNet1d.from_settings),
}

ENCODERS: Mapping[str, Entry[nn.Module]] = {  # made from settings, observations and n_obs_steps
    "low_dim": Entry(NameOnly, lambda own, observations, n_obs_steps: LowDimEncoder(observations, n_obs_steps)),
}

CODECS: Mapping[str, Entry[nn.Module]] = {  # made from settings and those of the policy
    "normalizer": Entry(NameOnly, lambda own, policy: Normalizer(policy.action_dim, policy.normalizer)),
}


def _denoising(own: DenoisingConfig) -> Denoising:
    schedule = made(SCHEDULES, "schedule", own.schedule, own.num_levels)
    return Denoising(
        schedule=schedules.zero_terminal_snr(schedule) if own.zero_terminal_snr else schedule,
        parameterization=made(PARAMETERIZATIONS, "parameterization", own.parameterization),
        weighting=made(WEIGHTINGS, "weighting", own.weighting),
        levels=made(LEVEL_DISTRIBUTIONS, "level_distribution", own.level_distribution),
        condition_dropout=own.condition_dropout,
    )


def resolved(config: PolicyConfig) -> PolicyConfig:
    """With the settings of every choice filled in, so that a checkpoint does not depend on defaults."""
    objective = settings_of(OBJECTIVES, "diffusion", config.diffusion)
    inner = {
        kind: settings_of(table, kind, getattr(objective, kind))
        for kind, table in DENOISING_CHOICES.items()
        if hasattr(objective, kind)
    }
    return replace(
        config,
        model=settings_of(BACKBONES, "model", config.model),
        diffusion=replace(objective, **inner),
        encoder=settings_of(ENCODERS, "encoder", config.encoder),
        codec=settings_of(CODECS, "codec", config.codec),
    )


def build_objective(choice: Choice) -> Any:
    """The training objective, an `Objective`."""
    return made(OBJECTIVES, "diffusion", choice)


def build_sampler(schedule: Schedule, choice: Choice) -> Sampler:
    """The sampler's table on this schedule, or the adapter of a scheduler of diffusers."""
    return made(SAMPLERS, "sampler", choice, schedule)


def build_codec(config: PolicyConfig) -> Any:
    """The codec of the policy's actions, a `Codec`."""
    return made(CODECS, "codec", config.codec, config)


def build_encoder(config: PolicyConfig) -> Any:
    """The encoder of the policy's observations, an `Encoder`."""
    return made(ENCODERS, "encoder", config.encoder, config.observations, config.window.n_obs_steps)


def build_network(config: PolicyConfig, encoded_shape: tuple[int, int], condition: ConditionShape) -> Any:
    """The denoising network, a `Backbone`.

    Args:
        encoded_shape: of what is denoised.
        condition: what the encoder gives.

    Raises:
        ValueError: settings that do not fit, or a backbone that reads what the encoder does not give.
    """
    config.window.check()
    try:
        return made(BACKBONES, "model", config.model, encoded_shape, condition)
    except LookupError as error:
        model = settings_of(BACKBONES, "model", config.model).name
        encoder = settings_of(ENCODERS, "encoder", config.encoder).name
        raise ValueError(
            f"model: {model} reads {error} of the condition, but the encoder {encoder} gives {condition.given()}; "
            "choose another model or encoder"
        ) from error
