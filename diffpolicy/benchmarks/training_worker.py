"""Child process of benchmark_training.py: trains one contestant, block by block.

It reads one JSON request per line from stdin ({"steps": n}) and writes one JSON answer per line to stdout.
"""

import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.optimization import get_scheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from diffpolicy.data.demonstrations import Demonstrations, load_demonstrations
from diffpolicy.data.locate import find_data_set
from diffpolicy.data.windows import split_episodes, window_indices
from diffpolicy.networks.condition import Condition
from diffpolicy.networks.layers import conv
from diffpolicy.system.shipped import CONFIGS
from diffpolicy.training.schemas import register_choices
from diffpolicy.training.settings import TrainConfig
from diffpolicy.training.trainer import Trainer

Step = Callable[[], Tensor]  # runs one optimiser step and returns its loss


def main() -> None:
    """Arguments: the contestant, threads, DataLoader workers, then settings of train_policy.py."""
    name, threads, workers, *overrides = sys.argv[1:]
    torch.set_num_threads(int(threads))
    ConfigStore.instance().store(name="train_schema", node=TrainConfig)
    register_choices()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config: Any = OmegaConf.to_object(compose("train", overrides))
    step = CONTESTANTS[name](config, int(workers))
    for line in sys.stdin:
        print(json.dumps(run_block(step, json.loads(line)["steps"])), flush=True)


def run_block(step: Step, steps: int) -> dict[str, float]:
    """Wall seconds per step, and the mean loss."""
    start = time.perf_counter()
    loss = float(torch.stack([step() for _ in range(steps)]).mean())  # waits for a GPU
    return {"seconds": (time.perf_counter() - start) / steps, "loss": loss}


def ours(config: TrainConfig, workers: int) -> Step:
    """The trainer's own step."""
    trainer = Trainer(config, Path(tempfile.gettempdir()))

    def step() -> Tensor:
        loss, _ = trainer.train_step()
        trainer.step += 1
        return loss

    return step


def ours_bfloat16(config: TrainConfig, workers: int) -> Step:
    """The same under autocast."""
    config.trainer.precision = "bfloat16"
    return ours(config, workers)


def ours_compiled(config: TrainConfig, workers: int) -> Step:
    """The same under autocast, and compiled."""
    config.trainer.compile = True
    return ours_bfloat16(config, workers)


def plain(config: TrainConfig, workers: int) -> Step:
    """The usual stack: DataLoader workers, torch's own layers, diffusers' scheduler, EMA parameter by parameter."""
    conv.SMALL_BATCH = sys.maxsize  # makes every layer torch's own
    policy: Any = Trainer(config, Path(tempfile.gettempdir())).policy
    device = policy.device
    average = [parameter.detach().clone() for parameter in policy.network.parameters()]
    batches = plain_batches(config, workers)
    optimizer = torch.optim.AdamW(
        policy.network.parameters(), config.trainer.learning_rate, betas=(0.95, 0.999), weight_decay=1e-6
    )
    rate = get_scheduler(
        "cosine", optimizer, num_warmup_steps=config.trainer.warmup_steps, num_training_steps=config.trainer.steps
    )
    scheduler = DDPMScheduler(config.diffusion.num_levels, beta_schedule="squaredcos_cap_v2", prediction_type="sample")

    def step() -> Tensor:
        batch = {key: value.to(device) for key, value in next(batches).items()}
        clean, observation = batch["action"], batch["observation"]
        condition = Condition(observation.flatten(1), observation).fields(policy.network.reads)
        noise = torch.randn_like(clean)
        level = torch.randint(0, config.diffusion.num_levels, (len(clean),), device=device)
        noisy: Any = scheduler.add_noise(clean, noise, level)  # pyright: ignore[reportArgumentType]
        loss = F.mse_loss(policy.network(noisy, level.float(), *condition), clean)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.network.parameters(), config.trainer.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        rate.step()
        with torch.no_grad():
            for mean, parameter in zip(average, policy.network.parameters(), strict=True):
                mean.mul_(0.999).add_(parameter, alpha=0.001)
        return loss.detach()

    return step


CONTESTANTS = {
    "diffpolicy": ours,
    "diffpolicy_bfloat16": ours_bfloat16,
    "diffpolicy_compiled": ours_compiled,
    "plain": plain,
}


class Windows(Dataset[dict[str, Tensor]]):
    """Normalised windows of demonstrations, cut one at a time."""

    def __init__(self, config: TrainConfig, data: Demonstrations) -> None:
        window = config.window
        pad = window.n_obs_steps - 1, window.n_action_steps - 1
        episodes, _ = split_episodes(data.n_episodes, config.data.validation_fraction, config.seed)
        self._index = window_indices(data.episode_ends, window.horizon, *pad, episodes)
        self._actions = normalised(data.actions.numpy())
        self._observations = normalised(
            np.concatenate([v.numpy() for v in data.observations.values() if isinstance(v, Tensor)], axis=1)
        )
        self._n_obs_steps = window.n_obs_steps

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        rows = self._index[index]
        observation = self._observations[rows[: self._n_obs_steps]]
        return {"observation": torch.from_numpy(observation), "action": torch.from_numpy(self._actions[rows])}


def normalised(values: np.ndarray) -> np.ndarray:
    """Scale columns to [-1, 1]."""
    low, high = values.min(0), values.max(0)
    return (2.0 * (values - low) / np.maximum(high - low, 1e-6) - 1.0).astype(np.float32)


def plain_batches(config: TrainConfig, workers: int) -> Iterator[dict[str, Tensor]]:
    """An endless stream of batches."""
    data = load_demonstrations(find_data_set(config.data.path), config.data.observations, config.data.action)
    loader = DataLoader(
        Windows(config, data),
        config.trainer.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    return itertools.chain.from_iterable(itertools.repeat(loader))


if __name__ == "__main__":
    main()
