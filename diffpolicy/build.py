"""From names in settings to objects: the tables in which every choice is an entry."""

from collections.abc import Callable, Mapping
from typing import TypeVar

from torch import nn

from diffpolicy.config import DiffusionConfig, ModelConfig, PolicyConfig, SamplerConfig, WindowConfig
from diffpolicy.diffusion import parameterization, schedule
from diffpolicy.diffusion.objective import Objective
from diffpolicy.diffusion.parameterization import Parameterization
from diffpolicy.diffusion.samplers import ancestral
from diffpolicy.diffusion.samplers.table import StepTable
from diffpolicy.diffusion.schedule import Schedule
from diffpolicy.networks.unet1d import UNet1d

Entry = TypeVar("Entry")

SCHEDULES: Mapping[str, Callable[[DiffusionConfig], Schedule]] = {
    "cosine": lambda config: schedule.cosine(config.num_levels),
    "linear": lambda config: schedule.linear(config.num_levels, config.beta_start, config.beta_end),
}

PARAMETERIZATIONS: Mapping[str, Parameterization] = {
    "epsilon": parameterization.EPSILON,
    "clean": parameterization.CLEAN,
    "v": parameterization.V,
}

SAMPLERS: Mapping[str, Callable[[Schedule, SamplerConfig], StepTable]] = {
    "ddpm": lambda schedule, config: ancestral.ddpm(schedule, config.steps, config.variance),
    "ddim": lambda schedule, config: ancestral.ddim(schedule, config.steps, config.eta),
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
    """The schedule and parameterization by name."""
    return Objective(
        schedule=lookup(SCHEDULES, "schedule", config.schedule)(config),
        parameterization=lookup(PARAMETERIZATIONS, "parameterization", config.parameterization),
    )


def build_sampler(schedule: Schedule, config: SamplerConfig) -> StepTable:
    """The sampler's table on this schedule."""
    return lookup(SAMPLERS, "sampler", config.name)(schedule, config)


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
