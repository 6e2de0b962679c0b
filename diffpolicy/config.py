"""Settings, as plain dataclasses: the schema of the YAML files, and what a checkpoint's config.json holds."""

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
class SafetyConfig:
    """What is demanded of a robot that is a disc in the plane; lengths in the units of its actions, seconds."""

    mode: str = "none"  # the reverse steps that are projected: none, clip, last, last_half, every_step
    candidates: int = 1  # samples drawn at most for a chunk
    robot_radius: float = 15.0
    clearance: float = 0.0  # demanded between robot and obstacles
    workspace: list[float] | None = None  # [low, high] of commands
    max_speed: float | None = None  # of the motion
    max_acceleration: float | None = None  # of the commands
    keep_out: list[Any] = field(default_factory=list)  # static discs [x, y, radius]
    inset: float = (
        3.0  # of distances: how much more than demanded, and than declared errors take, the projection aims at
    )
    slots: int = 6  # obstacles that the env may report
    position_error: float = 0.0  # bounds on the measured state (A1)
    velocity_error: float = 0.0
    rest_speed: float = 1.0  # slower is at rest: moving obstacles that come then are not the robot's fault
    delay_substeps: int = 0  # bound on how late an action takes effect (A5)
    stiffness: float = 100.0  # the plant: both envs' agent
    damping: float = 20.0
    substep_s: float = 0.01
    substeps: int = 10


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


@dataclass
class DataConfig:
    """Demonstrations: where they are, and which arrays are action and observations."""

    path: str
    action: str = "action"
    # {key: [array, ...]}, arrays as "state" or "state[:2]"; a typed dict would refuse new keys
    observations: Any = None
    normalizer: str = "limits"
    validation_fraction: float = 0.02
    stream: list[str] = field(default_factory=list)  # observations that stay on disk and are read for every batch
    workers: int = 2  # processes that read them


@dataclass
class EnvConfig:
    """The gymnasium env in which the policy is evaluated."""

    id: str
    kwargs: dict[str, Any] = field(default_factory=dict)
    reset_options: dict[str, Any] = field(default_factory=dict)


@dataclass
class TrainerConfig:
    """The training loop; lengths in optimiser steps."""

    steps: int = 5000
    batch_size: int = 256
    learning_rate: float = 2e-3
    warmup_steps: int = 200
    weight_decay: float = 1e-6
    betas: list[float] = field(default_factory=lambda: [0.95, 0.999])
    max_grad_norm: float = 1.0
    ema_power: float = 0.75
    ema_max_decay: float = 0.9999
    precision: str = "float32"  # or bfloat16, by autocast
    compile: bool = False  # the network, by torch.compile, which needs a C++ compiler or, on a GPU, Triton
    log_every: int = 50
    validate_every: int = 500
    evaluate_every: int = 2500
    checkpoint_every: int = 1000


@dataclass
class EvaluationConfig:
    """Evaluation during training; its seeds are not those of reported figures."""

    episodes: int = 20
    seed: int = 50_000
    inference_batch: int = 64  # fixed, so that a result does not depend on the number of episodes


@dataclass
class LoggerConfig:
    """Where metrics go besides metrics.jsonl."""

    name: str = "none"  # or wandb
    project: str = "diffpolicy"
    mode: str = "online"  # wandb: online or offline


@dataclass
class TrainConfig:
    """Everything that `train_policy.py` reads."""

    task: str
    data: DataConfig
    env: EnvConfig | None = None  # none: evaluation is off
    window: WindowConfig = field(default_factory=WindowConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)  # of the evaluation during training
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    seed: int = 0
    device: str = "auto"  # cuda, mps or cpu, the first there is
    resume: bool = False


@dataclass
class EvaluateConfig:
    """Everything that `evaluate_policy.py` reads."""

    checkpoint: str
    task: str | None = None  # refuse a checkpoint of another task
    env: EnvConfig | None = None  # comes with the task; by default the checkpoint's
    data: Any = None  # these come with the task, not used
    trainer: Any = None
    window: Any = None
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    safety: SafetyConfig = field(default_factory=SafetyConfig)
    episodes: int = 50
    seed: int = 100_000
    videos: int = 3
    inference_batch: int = 64
    device: str = "auto"
