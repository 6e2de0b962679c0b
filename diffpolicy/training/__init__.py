"""Training: settings, the training loop, and its checkpoints and logs."""

from diffpolicy.evaluation.settings import EnvConfig
from diffpolicy.policy.settings import WindowConfig
from diffpolicy.training.settings import DataConfig, EvaluationConfig, LoggerConfig, TrainConfig, TrainerConfig
from diffpolicy.training.trainer import Trainer

__all__ = [
    "DataConfig",
    "EnvConfig",
    "EvaluationConfig",
    "LoggerConfig",
    "TrainConfig",
    "Trainer",
    "TrainerConfig",
    "WindowConfig",
]
