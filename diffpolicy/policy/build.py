"""Tables of all choices that settings can name, and the functions that build them."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from diffpolicy.diffusion import parameterization, schedules, weighting
from diffpolicy.diffusion.diffusers_sampler import DiffusersConfig, DiffusersSampler
from diffpolicy.diffusion.objectives.denoising import Denoising, DenoisingConfig
from diffpolicy.diffusion.parameterization import EdmConfig, Parameterization
from diffpolicy.diffusion.samplers import ancestral, heun, langevin, multistep
from diffpolicy.diffusion.samplers.ancestral import DdimConfig, DdpmConfig
from diffpolicy.diffusion.samplers.heun import HeunConfig
from diffpolicy.diffusion.samplers.langevin import LangevinConfig, PredictorCorrectorConfig
from diffpolicy.diffusion.samplers.multistep import Dpmpp3mConfig, UnipcConfig
from diffpolicy.diffusion.samplers.settings import SamplerConfig
from diffpolicy.diffusion.samplers.table import StepTable
from diffpolicy.diffusion.schedule import Levels, Schedule
from diffpolicy.diffusion.schedules import BetasConfig, SigmasConfig, VpConfig
from diffpolicy.diffusion.spacing import SPACINGS
from diffpolicy.diffusion.weighting import (
    LevelDistribution,
    LogitNormalConfig,
    LogNormalConfig,
    MinSnrConfig,
    P2Config,
    Weighting,
)
from diffpolicy.networks.backbones.dit import DiT, DiTConfig
from diffpolicy.networks.backbones.transformer import Transformer, TransformerConfig
from diffpolicy.networks.backbones.unet1d import UNet1d, UNet1dConfig
from diffpolicy.networks.condition import ConditionShape, NotGivenError
from diffpolicy.networks.encoders import resnet, vit
from diffpolicy.networks.encoders.low_dim import LowDimEncoder
from diffpolicy.policy.normalizers import action_normalizer, normalizer_settings
from diffpolicy.policy.settings import PolicyConfig
from diffpolicy.system.tables import Choice, Entry, NameOnly, lookup, made, settings_of

Sampler = StepTable | DiffusersSampler
MAX_PARAMETERS = 2**31  # of a network: 8.6 GB in float32

SCHEDULES: Mapping[str, Entry[Schedule]] = {  # built from its settings and the number of levels
    "linear": Entry(BetasConfig, lambda own, levels: schedules.linear(levels, own.beta_start, own.beta_end)),
    "scaled_linear": Entry(
        BetasConfig, lambda own, levels: schedules.scaled_linear(levels, own.beta_start, own.beta_end)
    ),
    "cosine": Entry(NameOnly, lambda own, levels: schedules.cosine(levels)),
    "sigmoid": Entry(NameOnly, lambda own, levels: schedules.sigmoid(levels)),
    "vp": Entry(VpConfig, lambda own, levels: schedules.vp(levels, own.beta_min, own.beta_max)),
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
    """The entry of a table sampler; `make` takes the levels to start steps from, the schedule and the settings."""

    def from_schedule(own: SamplerConfig, schedule: Schedule) -> StepTable:
        return make(lookup(SPACINGS, "spacing", own.spacing)(schedule, own.steps), schedule, own)

    return Entry(settings, from_schedule)


TABLES: Mapping[str, Entry[Sampler]] = {  # built from its settings and the schedule
    "ddpm": _table(DdpmConfig, lambda now, schedule, own: ancestral.started(ancestral.ddpm(now, own.variance), own)),
    "ddim": _table(
        DdimConfig,
        lambda now, schedule, own: ancestral.started(ancestral.ddim(now, own.eta, own.clipped_epsilon), own),
    ),
    "euler": _table(SamplerConfig, lambda now, schedule, own: ancestral.ddim(now)),
    "flow_euler": _table(SamplerConfig, lambda now, schedule, own: ancestral.ddim(now)),
    "dpmpp_2m": _table(SamplerConfig, lambda now, schedule, own: multistep.dpmpp_2m(now)),
    "dpmpp_2m_sde": _table(SamplerConfig, lambda now, schedule, own: multistep.dpmpp_2m_sde(now)),
    "dpmpp_3m": _table(Dpmpp3mConfig, lambda now, schedule, own: multistep.dpmpp_3m(now, own.as_published)),
    "unipc": _table(UnipcConfig, lambda now, schedule, own: multistep.unipc(now, own.order)),
    "heun": _table(HeunConfig, lambda now, schedule, own: heun.heun(now, schedule, own)),
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

BACKBONES: Mapping[str, Entry[nn.Module]] = {  # built from its settings, the encoded shape and the condition's shape
    "unet1d": Entry(UNet1dConfig, UNet1d.from_settings),
    "transformer": Entry(TransformerConfig, Transformer.from_settings),
    "dit": Entry(DiTConfig, DiT.from_settings),
}

ENCODERS: Mapping[str, Entry[nn.Module]] = {  # built from its settings, the observations and n_obs_steps
    "low_dim": Entry(NameOnly, lambda own, observations, n_obs_steps: LowDimEncoder(observations, n_obs_steps)),
    "resnet18": Entry(resnet.Resnet18Config, resnet.resnet18),
    "resnet18_narrow": Entry(resnet.ResnetConfig, resnet.resnet18_narrow),
    "vit": Entry(vit.VitConfig, vit.vit),
}

CODECS: Mapping[str, Entry[nn.Module]] = {  # built from its settings and the policy's
    "normalizer": Entry(NameOnly, lambda own, policy: action_normalizer(policy)),
}


def _denoising(own: DenoisingConfig) -> Denoising:
    schedule = made(SCHEDULES, "schedule", own.schedule, own.num_levels)
    return Denoising(
        schedule=schedules.zero_terminal_snr(schedule) if own.zero_terminal_snr else schedule,
        parameterization=made(PARAMETERIZATIONS, "parameterization", own.parameterization),
        weighting=made(WEIGHTINGS, "weighting", own.weighting),
        levels=made(LEVEL_DISTRIBUTIONS, "level_distribution", own.level_distribution),
        condition_dropout=own.condition_dropout,
        draws=own.draws,
    )


def resolved(config: PolicyConfig) -> PolicyConfig:
    """Fill in the settings of every choice, so that a checkpoint does not depend on defaults.

    Raises:
        ValueError: a choice or a setting is unknown.
    """
    objective = settings_of(OBJECTIVES, "diffusion", config.diffusion)
    inner = {
        kind: settings_of(table, kind, getattr(objective, kind))
        for kind, table in DENOISING_CHOICES.items()
        if hasattr(objective, kind)
    }
    return replace(
        config,
        normalizer=normalizer_settings(config),
        model=settings_of(BACKBONES, "model", config.model),
        diffusion=replace(objective, **inner),
        encoder=settings_of(ENCODERS, "encoder", config.encoder),
        codec=settings_of(CODECS, "codec", config.codec),
    )


def build_objective(choice: Choice) -> Any:
    """Build the training objective, an `Objective`; raises ValueError as `settings_of`, or if its parts do not fit."""
    return made(OBJECTIVES, "diffusion", choice)


def build_sampler(schedule: Schedule, choice: Choice, steps: int | None = None) -> Sampler:
    """Build a sampler for a schedule: its table, or the adapter of a diffusers scheduler.

    Raises:
        ImportError: the sampler needs diffusers, which is not installed.
        ValueError: an unknown sampler or setting, or one that does not fit the schedule.
    """
    return made(SAMPLERS, "sampler", sampler_settings(choice, steps), schedule)


def sampler_settings(choice: Choice, steps: int | None = None) -> Any:
    """The settings of a sampler, with `steps` in place of their own unless it is None."""
    settings = settings_of(SAMPLERS, "sampler", choice)
    return settings if steps is None else replace(settings, steps=steps)


def build_codec(config: PolicyConfig) -> Any:
    """Build the codec of the policy's actions, a `Codec`."""
    return made(CODECS, "codec", config.codec, config)


def build_encoder(config: PolicyConfig) -> Any:
    """Build the encoder of the policy's observations, an `Encoder`."""
    return made(ENCODERS, "encoder", config.encoder, config.observations, config.window.n_obs_steps)


def build_network(config: PolicyConfig, encoded_shape: tuple[int, int], condition: ConditionShape) -> Any:
    """Build the denoising network, a `Backbone`.

    Args:
        encoded_shape: [length, features] of the encoded trajectory.
        condition: shapes of the encoder's output.

    Raises:
        ValueError: the settings do not fit or make too large a network, or the backbone reads a field that the
            encoder does not return.
    """
    config.window.check()
    try:
        with torch.device("meta"):  # without memory or time
            sizes = made(BACKBONES, "model", config.model, encoded_shape, condition).parameters()
        if (count := sum(size.numel() for size in sizes)) > MAX_PARAMETERS:
            raise ValueError(f"model: has {count} parameters, expected at most {MAX_PARAMETERS}; make it narrower")
        network: Any = made(BACKBONES, "model", config.model, encoded_shape, condition)
        for field in network.reads:
            condition.of(field)
        return network
    except NotGivenError as error:
        model = settings_of(BACKBONES, "model", config.model).name
        encoder = settings_of(ENCODERS, "encoder", config.encoder).name
        raise ValueError(
            f"model: {model} reads {error} of the condition, but the encoder {encoder} gives {condition.given()}; "
            "choose another model or encoder"
        ) from error
