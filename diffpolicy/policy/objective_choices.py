"""Tables of the schedules, parameterizations, weightings and training objectives that settings can name."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from diffpolicy.diffusion import parameterization, schedules, weighting
from diffpolicy.diffusion.objectives.consistency import Consistency, ConsistencyConfig
from diffpolicy.diffusion.objectives.consistency_trajectory import ConsistencyTrajectory, ConsistencyTrajectoryConfig
from diffpolicy.diffusion.objectives.denoising import Denoising, DenoisingConfig
from diffpolicy.diffusion.objectives.diffusion_forcing import DiffusionForcing, DiffusionForcingConfig
from diffpolicy.diffusion.objectives.distribution_matching import DistributionMatching, DistributionMatchingConfig
from diffpolicy.diffusion.objectives.learned_variance import LearnedVariance, LearnedVarianceConfig
from diffpolicy.diffusion.objectives.mixture_density import MixtureDensity, MixtureDensityConfig
from diffpolicy.diffusion.objectives.progressive import Progressive, ProgressiveConfig
from diffpolicy.diffusion.objectives.reflow import Reflow, ReflowConfig
from diffpolicy.diffusion.objectives.regression import Regression, RegressionConfig, TwoStepRegressionConfig
from diffpolicy.diffusion.objectives.shortcut import Shortcut, ShortcutConfig
from diffpolicy.diffusion.objectives.variational import Variational, VariationalConfig
from diffpolicy.diffusion.parameterization import EdmConfig, Parameterization
from diffpolicy.diffusion.schedule import Schedule
from diffpolicy.diffusion.schedules import BetasConfig, SigmasConfig, VpConfig
from diffpolicy.diffusion.weighting import (
    LevelDistribution,
    LogitNormalConfig,
    LogNormalConfig,
    MinSnrConfig,
    P2Config,
    Weighting,
)
from diffpolicy.system.tables import Choice, Entry, NameOnly, made, settings_of

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

OBJECTIVES: Mapping[str, Entry[Any]] = {
    "denoising": Entry(DenoisingConfig, lambda own: _denoising(own)),
    "diffusion_forcing": Entry(DiffusionForcingConfig, lambda own: DiffusionForcing(_denoising(own))),
    "learned_variance": Entry(LearnedVarianceConfig, lambda own: LearnedVariance(_denoising(own), own.vlb_weight)),
    "consistency": Entry(
        ConsistencyConfig,
        lambda own: Consistency(_base(own), own.first_intervals, own.last_intervals, own.double_every),
    ),
    "consistency_trajectory": Entry(
        ConsistencyTrajectoryConfig, lambda own: ConsistencyTrajectory(_base(own), own.intervals)
    ),
    "shortcut": Entry(ShortcutConfig, lambda own: Shortcut(_base(own), own.share)),
    "progressive": Entry(
        ProgressiveConfig, lambda own: Progressive(_base(own), own.first_steps, own.last_steps, own.round_every)
    ),
    "reflow": Entry(ReflowConfig, lambda own: Reflow(_base(own), own.teacher_steps, own.at_noise)),
    "distribution_matching": Entry(
        DistributionMatchingConfig, lambda own: DistributionMatching(_base(own), own.lowest, own.highest)
    ),
    "regression": Entry(RegressionConfig, lambda own: Regression(own.name, own.loss)),
    "two_step_regression": Entry(TwoStepRegressionConfig, lambda own: Regression(own.name, own.loss, own.noise)),
    "mixture_density": Entry(MixtureDensityConfig, lambda own: MixtureDensity(own.components, own.min_std, own.spread)),
    "variational": Entry(VariationalConfig, lambda own: Variational(own.beta, own.std, own.free_nats)),
}


def build_objective(choice: Choice) -> Any:
    """Build the training objective, an `Objective`; raises ValueError as `settings_of`, or if its parts do not fit."""
    return made(OBJECTIVES, "diffusion", choice)


def objective_settings(choice: Choice) -> Any:
    """The settings of an objective with the settings of all choices inside filled in.

    Raises:
        ValueError: a choice or a setting is unknown.
    """
    own = settings_of(OBJECTIVES, "diffusion", choice)
    if hasattr(own, "denoising"):
        return replace(own, denoising=objective_settings(_base_settings(own)))
    inner = {
        kind: settings_of(table, kind, getattr(own, kind))
        for kind, table in DENOISING_CHOICES.items()
        if hasattr(own, kind)
    }
    return replace(own, **inner)


def _base_settings(own: Any) -> DenoisingConfig:
    """The settings of the denoiser that a few-step objective starts from."""
    choice = own.BASE if own.denoising is None else own.denoising
    if isinstance(choice, Mapping):
        choice = {"name": "denoising", **choice}
    return settings_of({"denoising": OBJECTIVES["denoising"]}, "diffusion.denoising", choice)


def _base(own: Any) -> Denoising:
    return _denoising(_base_settings(own))


def _denoising(own: DenoisingConfig) -> Denoising:
    schedule = made(SCHEDULES, "schedule", own.schedule, own.num_levels)
    schedule = schedules.zero_terminal_snr(schedule) if own.zero_terminal_snr else schedule
    return Denoising(
        schedule=replace(schedule, correlation=own.noise_correlation),
        parameterization=made(PARAMETERIZATIONS, "parameterization", own.parameterization),
        weighting=made(WEIGHTINGS, "weighting", own.weighting),
        levels=made(LEVEL_DISTRIBUTIONS, "level_distribution", own.level_distribution),
        condition_dropout=own.condition_dropout,
        draws=own.draws,
    )
