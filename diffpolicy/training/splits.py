"""The split of the demonstrations into batches of windows for training and fixed windows for validation."""

import numpy as np
import torch

from diffpolicy.data.demonstrations import Demonstrations
from diffpolicy.data.windows import split_episodes, windows_per_episode
from diffpolicy.training.batches import Batch, WindowBatches
from diffpolicy.training.settings import TrainConfig

VALIDATION_WINDOWS = 1024


def split_windows(
    config: TrainConfig, data: Demonstrations, device: torch.device
) -> tuple[WindowBatches, Batch | None]:
    """Batches of the training split, and the validation windows, or None if validation_fraction is 0.

    Raises:
        ValueError: a split has no window.
    """
    window = config.window
    counts = windows_per_episode(data.episode_ends, window.horizon, window.n_obs_steps - 1, window.n_action_steps - 1)
    train, validation = split_episodes(data.n_episodes, config.data.validation_fraction, config.seed, counts > 0)
    batches = _windows("training", config, data, train, device)
    if len(validation) == 0:
        return batches, None
    return batches, _windows("validation", config, data, validation, device).first(VALIDATION_WINDOWS)


def _windows(
    split: str, config: TrainConfig, data: Demonstrations, episodes: np.ndarray, device: torch.device
) -> WindowBatches:
    try:
        batch_size, workers, limit_s = config.trainer.batch_size, config.data.workers, config.limits.data_s
        others = config.seed, device, workers, limit_s, config.data.weights, config.trainer.mask_padding
        return WindowBatches(data, episodes, config.window, batch_size, *others)
    except ValueError as error:
        raise ValueError(f"{split} split, {len(episodes)} of {data.n_episodes} episodes: {error}") from error
