"""Child process of benchmark_training.py: trains one contestant, block by block.

It reads one JSON request per line from stdin ({"steps": n}) and writes one JSON answer per line to stdout.
"""

import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
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

from diffpolicy.data.demonstrations import ACTION, Demonstrations
from diffpolicy.data.windows import split_episodes, window_indices
from diffpolicy.networks.condition import Condition
from diffpolicy.networks.layers import conv
from diffpolicy.system.shipped import CONFIGS
from diffpolicy.training.data_formats import load_data
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
    images = config.trainer.batch_size * config.window.n_obs_steps * len(config.data.images or {})  # of a step
    for line in sys.stdin:
        answer = run_block(step, json.loads(line)["steps"])
        print(json.dumps({**answer, "images": images}), flush=True)


def run_block(step: Step, steps: int) -> dict[str, float]:
    """Wall and CPU seconds per step, and the mean loss. The CPU time of DataLoader workers does not count."""
    start, cpu = time.perf_counter(), time.process_time()
    loss = float(torch.stack([step() for _ in range(steps)]).mean())  # waits for a GPU
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    return {"seconds": wall / steps, "cpu_seconds": cpu / steps, "loss": loss}


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
    """The usual stack: DataLoader workers, torch's own layers, diffusers' scheduler, EMA parameter by parameter.

    Images are cropped and made float one by one by the workers, and lie channels first in memory. Nothing auxiliary is
    taught.
    """
    conv.SMALL_BATCH = sys.maxsize  # makes every layer torch's own
    policy: Any = Trainer(config, Path(tempfile.gettempdir())).policy
    policy.encoder.to(memory_format=torch.contiguous_format)
    device, draws = policy.device, config.diffusion.draws
    parameters = [*policy.encoder.parameters(), *policy.network.parameters()]
    average = [parameter.detach().clone() for parameter in parameters]
    batches = plain_batches(config, getattr(policy.encoder, "crops", {}), workers)
    optimizer = torch.optim.AdamW(parameters, config.trainer.learning_rate, betas=(0.95, 0.999), weight_decay=1e-6)
    rate = get_scheduler(
        "cosine", optimizer, num_warmup_steps=config.trainer.warmup_steps, num_training_steps=config.trainer.steps
    )
    scheduler = DDPMScheduler(config.diffusion.num_levels, beta_schedule="squaredcos_cap_v2", prediction_type="sample")

    def step() -> Tensor:
        batch = {key: value.to(device) for key, value in next(batches).items()}
        clean = batch.pop(ACTION).repeat_interleave(draws, dim=0)
        fields = encoded(policy.encoder, batch).fields(policy.network.reads)
        condition = [value.repeat_interleave(draws, dim=0) for value in fields]
        noise = torch.randn_like(clean)
        level = torch.randint(0, config.diffusion.num_levels, (len(clean),), device=device)
        noisy: Any = scheduler.add_noise(clean, noise, level)  # pyright: ignore[reportArgumentType]
        loss = F.mse_loss(policy.network(noisy, level.float(), *condition), clean)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, config.trainer.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        rate.step()
        with torch.no_grad():
            for mean, parameter in zip(average, parameters, strict=True):
                mean.mul_(0.999).add_(parameter, alpha=0.001)
        return loss.detach()

    return step


def encoded(encoder: Any, observation: dict[str, Tensor]) -> Condition:
    """What our encoder makes of normalised vectors [B, T, D] and floating-point images [B, T, C, h, w]."""
    eyes = dict(zip(encoder.cameras, itertools.cycle(encoder.eyes))) if hasattr(encoder, "cameras") else {}
    steps = [
        eyes[key](value.flatten(0, 1)).unflatten(0, value.shape[:2]) if key in eyes else value
        for key, value in sorted(observation.items())
    ]
    tokens = torch.cat(steps, dim=-1)
    return Condition(tokens.flatten(1), tokens)


CONTESTANTS = {
    "diffpolicy": ours,
    "diffpolicy_bfloat16": ours_bfloat16,
    "diffpolicy_compiled": ours_compiled,
    "plain": plain,
}


class Windows(Dataset[dict[str, Tensor]]):
    """Normalised windows of demonstrations, cut one at a time, with a random crop of their images.

    Args:
        crops: {key of images: [height, width]}.
    """

    def __init__(self, config: TrainConfig, data: Demonstrations, crops: Mapping[str, tuple[int, int]]) -> None:
        window = config.window
        pad = window.n_obs_steps - 1, window.n_action_steps - 1
        episodes, _ = split_episodes(data.n_episodes, config.data.validation_fraction, config.seed)
        self._index = window_indices(data.episode_ends, window.horizon, *pad, episodes)
        self._actions = normalised(data.actions.numpy())
        held = {key: value.numpy() for key, value in data.observations.items() if isinstance(value, Tensor)}
        self._vectors = {key: normalised(value) for key, value in held.items() if key not in crops}
        self._images = {key: value for key, value in held.items() if key in crops}
        self._n_obs_steps, self._crops = window.n_obs_steps, crops

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        rows = self._index[index]
        seen = rows[: self._n_obs_steps]
        vectors = {key: torch.from_numpy(value[seen]) for key, value in self._vectors.items()}
        images = {key: cropped(torch.from_numpy(value[seen]), self._crops[key]) for key, value in self._images.items()}
        return {**vectors, **images, ACTION: torch.from_numpy(self._actions[rows])}


def cropped(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """Frames [T, H, W, C] of uint8 -> a random crop [T, C, h, w] in [-1, 1]."""
    top, left = (int(torch.randint(frames.shape[1 + axis] - size[axis] + 1, ())) for axis in (0, 1))
    crop = frames[:, top : top + size[0], left : left + size[1]].permute(0, 3, 1, 2)
    return crop.float().div(127.5).sub(1.0).contiguous()


def normalised(values: np.ndarray) -> np.ndarray:
    """Scale columns to [-1, 1]."""
    low, high = values.min(0), values.max(0)
    return (2.0 * (values - low) / np.maximum(high - low, 1e-6) - 1.0).astype(np.float32)


def plain_batches(
    config: TrainConfig, crops: Mapping[str, tuple[int, int]], workers: int
) -> Iterator[dict[str, Tensor]]:
    """An endless stream of batches."""
    data = load_data(config.data, config.env, config.limits.data_s)
    loader = DataLoader(
        Windows(config, data, crops),
        config.trainer.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    return itertools.chain.from_iterable(itertools.repeat(loader))


if __name__ == "__main__":
    main()
