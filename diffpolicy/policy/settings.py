"""Settings of a policy, as plain dataclasses: what a checkpoint's config.json holds."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class ModelConfig:
    """The denoising network."""

    name: str = "unet1d"
    widths: list[int] = field(default_factory=lambda: [32, 64, 128])
    time_embedding_dim: int = 128
    kernel_size: int = 5
    groups: int = 8


@dataclass
class DiffusionConfig:
    """The objective: noise schedule, parameterization, and what each level counts."""

    schedule: str = "cosine"
    num_levels: int = 100
    beta_start: float = 1e-4  # schedules linear, scaled_linear
    beta_end: float = 2e-2
    zero_terminal_snr: bool = False
    sigma_min: float = 0.002  # schedules ve, karras
    sigma_max: float = 80.0
    sigma_data: float = 0.5  # standard deviation of normalised actions, for ve, karras and edm
    parameterization: str = "clean"
    weighting: str = "simple"
    level_distribution: str = "uniform"
    condition_dropout: float = 0.0  # share of windows whose observations a learned null token replaces


@dataclass
class GuidanceConfig:
    """What steers the samples, besides the observations."""

    weight: float = 0.0  # classifier-free: (1 + weight) with condition - weight without
    rescale: float = 0.0  # share of the conditional estimate's standard deviation that is restored
    threshold: float = 1.0  # quantile of dynamic thresholding; 1: no more than the data's limits
    epsilon_scale: float = 1.0  # divides the noise estimate


@dataclass
class SamplerConfig:
    """How actions are sampled."""

    name: str = "ddim"
    steps: int = 10
    spacing: str | None = None  # trailing, leading, log_snr, karras; by default the sampler's own
    eta: float = 0.0  # ddim
    variance: str = "posterior"  # ddpm: posterior or beta
    churn: float = 0.0  # heun
    langevin_steps: int | None = None  # at each level: langevin, predictor_corrector; by default the sampler's own
    langevin_rate: float | None = None  # length of a Langevin step over sigma^2
    scheduler: str = "UniPCMultistepScheduler"  # diffusers
    scheduler_options: Any = None  # diffusers: arguments of the scheduler, as in {use_karras_sigmas: true}
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)


@dataclass
class WindowConfig:
    """What the policy sees, plans and executes, in time steps."""

    horizon: int = 16
    n_obs_steps: int = 2
    n_action_steps: int = 8


@dataclass
class PolicyConfig:
    """All that defines a policy besides its weights."""

    observations: dict[str, int]  # key -> features of one time step
    action_dim: int
    normalizer: str = "limits"
    window: WindowConfig = field(default_factory=WindowConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)


def policy_config(content: Mapping[str, Any]) -> PolicyConfig:
    """The settings that a checkpoint holds; ValueError where they are those of another version."""
    nested = {"window": WindowConfig, "model": ModelConfig, "diffusion": DiffusionConfig}
    try:
        return PolicyConfig(**{k: nested[k](**v) if k in nested else v for k, v in content.items()})
    except TypeError as error:
        raise ValueError(f"checkpoint: settings do not fit this version of diffpolicy: {error}") from error
