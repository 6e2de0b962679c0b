"""Settings of a training run: the schema of configs/train.yaml."""

from dataclasses import dataclass, field
from typing import Annotated, Any

from diffpolicy.evaluation.settings import EnvConfig, Episodes, InferenceBatch, Seed
from diffpolicy.policy.settings import WindowConfig
from diffpolicy.system.pixels import PixelFormat
from diffpolicy.system.schema import Count, OneOf, Range, read
from diffpolicy.system.time_limits import LimitsConfig

Steps = Annotated[int, Range(1, 1_000_000_000)]


@dataclass
class DataConfig:
    """The demonstrations: where they are, and which arrays are the action and the observations.

    `auxiliary` names arrays that the encoder is taught to predict, with their weights in the loss: {keypoint: 0.1}.
    With several data sets, `weights` says how often each is drawn from; by default every window once per epoch.

    Attributes:
        episodes: use at most so many of each data set, the first ones; None for all.
        images: which observations are images and how they are delivered, {key: {channels: last, values: bytes}}; see
            `PixelFormat`. {key: {}} takes these defaults.
        render: observations of the env, in `env`, to draw from stored arrays, {key: [array, ...]}; see
            `training.rendering`. Arrays of these names then belong to the data set.
        cache: folder for what is drawn; None is ~/.cache/diffpolicy.
    """

    path: Any  # or a list, for several data sets
    action: str = "action"
    # {key: [array, ...]}, where an array is "state" or "state[:2]"; Any, because hydra refuses new keys in a typed dict
    observations: Any = None
    auxiliary: Any = None  # {array: weight}, e.g. {keypoint: 0.1}
    normalizer: Any = "limits"  # a choice for all keys, or one for each: {state: gaussian, action: quantiles}
    format: str = "zarr"
    validation_fraction: Annotated[float, Range(least=0, below=1)] = 0.02
    stream: list[str] = field(default_factory=list)  # observations that stay on disk and are read for every batch
    workers: Annotated[int, Range(0, 256)] = 2  # processes that read streamed observations or draw rendered ones
    weights: list[Annotated[float, Range(above=0)]] | None = None  # one per data set
    episodes: Annotated[int | None, Range(1, 1_000_000_000)] = None
    images: Any = None
    render: Any = None
    cache: str | None = None

    def auxiliary_weights(self) -> dict[str, float]:
        """The auxiliary arrays with their weights; raises ValueError unless they are names with positive numbers."""
        found = read(dict[str, Annotated[float, Range(above=0.0)]], self.auxiliary or {}, "data: auxiliary")
        return dict(sorted(found.items()))


def image_formats(data: DataConfig) -> dict[str, PixelFormat]:
    """The observations that are images, and how they are delivered.

    Raises:
        ValueError: data.images is no mapping of such formats.
    """
    found = read(dict[str, PixelFormat | None], data.images or {}, "data: images")
    return {key: pixels or PixelFormat() for key, pixels in found.items()}


@dataclass
class TrainerConfig:
    """The training loop; all lengths are in optimiser steps."""

    steps: Steps = 5000
    batch_size: Annotated[int, Range(1, 2**20)] = 256
    learning_rate: Annotated[float, Range(above=0)] = 2e-3
    warmup_steps: Annotated[int, Range(0, 1_000_000_000)] = 200
    weight_decay: Annotated[float, Range(least=0)] = 1e-6
    betas: Annotated[list[Annotated[float, Range(least=0, below=1)]], Count(2, 2)] = field(
        default_factory=lambda: [0.95, 0.999]
    )
    max_grad_norm: Annotated[float, Range(above=0)] = 1.0
    ema_power: Annotated[float, Range(above=0)] = 0.75
    ema_max_decay: Annotated[float, Range(least=0, below=1)] = 0.9999
    precision: Annotated[str, OneOf("float32", "bfloat16")] = "float32"  # bfloat16 with autocast
    compile: bool = False  # the network by torch.compile; on a GPU also the gradient of a batch as one CUDA graph
    mask_padding: bool = False  # leave actions that only repeat, beyond the ends of an episode, out of the loss
    log_every: Steps = 50
    validate_every: Steps = 500
    evaluate_every: Steps = 2500
    checkpoint_every: Steps = 1000


@dataclass
class EvaluationConfig:
    """Evaluation during training; its seeds differ from those of reported results."""

    episodes: Episodes = 20
    seed: Seed = 50_000
    inference_batch: InferenceBatch = 64  # fixed, so that a result does not depend on the number of episodes


@dataclass
class LoggerConfig:
    """Where to log metrics besides metrics.jsonl."""

    name: Annotated[str, OneOf("none", "wandb")] = "none"
    project: str = "diffpolicy"
    mode: Annotated[str | None, OneOf("online", "offline")] = None  # None: what WANDB_MODE says, else online


@dataclass
class TrainConfig:
    """All settings of `train_policy.py`; see `PolicyConfig` for the choices (model, diffusion, ...)."""

    task: str
    data: DataConfig
    env: EnvConfig | None = None  # None turns evaluation off
    window: WindowConfig = field(default_factory=WindowConfig)
    policy: str = "diffusion"
    model: Any = "unet1d"
    diffusion: Any = "denoising"
    encoder: Any = "low_dim"
    codec: Any = "normalizer"
    sampler: Any = "auto"  # for the evaluation during training
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    seed: Seed = 0
    device: str = "auto"  # the first available of cuda, mps and cpu
    resume: bool = False  # continue the run in this folder
    teacher: str | None = None  # the checkpoint that an objective for few steps starts from and learns from
    init_from: str | None = None  # begin with the weights and normalisation of a checkpoint, with the same settings
