"""The one training loop: AdamW with warm-up and cosine, EMA, validation, evaluation, checkpoints, resume.

All randomness is a function of (seed, step), and so are learning rate and EMA decay: what must be saved is weights,
averages and the optimiser's moments.
"""

import contextlib
import math
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from diffpolicy import checkpoint
from diffpolicy.batches import WindowBatches, mixed_seed
from diffpolicy.config import PolicyConfig, TrainConfig, TrainerConfig
from diffpolicy.data.demonstrations import Demonstrations, load_demonstrations
from diffpolicy.data.sources import find_data_set
from diffpolicy.data.windows import split_episodes
from diffpolicy.ema import Ema
from diffpolicy.evaluation import evaluate, summarize
from diffpolicy.metrics import Metrics, check_finite, check_logger
from diffpolicy.policy import DiffusionPolicy, check_tensors

VALIDATION_WINDOWS = 1024
RESUMABLE = ("task", "data", "window", "model", "diffusion", "trainer", "seed")


class Trainer:
    """Trains a policy as `config` says, in the run folder `folder`.

    Raises:
        ValueError: settings or data that do not fit, a loss that is not finite (FloatingPointError), a checkpoint
            of other settings on resume.
        FileNotFoundError: no data, or nothing to resume.
    """

    def __init__(self, config: TrainConfig, folder: Path) -> None:
        check_trainer(config.trainer)
        check_logger(config.logger)
        self.config = config
        self.folder = folder
        self.device = choose_device(config.device)
        torch.manual_seed(config.seed)
        data = _load(config)
        self.policy = DiffusionPolicy(policy_config(config, data))
        self.policy.sampler(config.sampler)  # refuse what cannot be sampled before any work
        self.policy.fit_normalizers(data.observations, data.actions)
        self.policy.metadata = {
            "task": config.task,
            "env": config.env and asdict(config.env),
            "training": settings(config),
        }
        self.policy.to(self.device)
        train, validation = split_episodes(data.n_episodes, config.data.validation_fraction, config.seed)
        arguments = (config.window, config.trainer.batch_size, config.seed, self.device)
        self.batches = WindowBatches(data, train, *arguments)
        self.validation = (
            WindowBatches(data, validation, *arguments).first(VALIDATION_WINDOWS) if len(validation) else None
        )
        self.ema = Ema(self.policy, config.trainer.ema_power, config.trainer.ema_max_decay)
        self.optimizer = torch.optim.AdamW(
            self.policy.parameters(),
            lr=config.trainer.learning_rate,
            betas=(config.trainer.betas[0], config.trainer.betas[1]),
            weight_decay=config.trainer.weight_decay,
            fused=True,
        )
        self.step = 0
        self.best_score = -math.inf
        if config.resume:
            self._resume()

    def run(self) -> None:
        """Train to the last step."""
        self.folder.mkdir(parents=True, exist_ok=True)
        trainer = self.config.trainer
        metrics = Metrics(self.folder, self.config.logger, asdict(self.config), self.step)
        bar = tqdm(total=trainer.steps, initial=self.step, desc=self.config.task, unit="step", dynamic_ncols=True)
        losses: list[Tensor] = []
        with contextlib.closing(metrics), bar:
            while self.step < trainer.steps:
                loss, grad_norm = self._train_step()
                losses.append(loss)
                self.step += 1
                bar.update()
                if self._is_due(trainer.log_every):
                    mean_loss = float(torch.stack(losses).mean())
                    check_finite(self.step, mean_loss)
                    losses.clear()
                    values = {"loss": mean_loss, "learning_rate": self._learning_rate(self.step - 1)}
                    metrics.write(self.step, {**values, "grad_norm": float(grad_norm)})
                    bar.set_postfix(loss=f"{mean_loss:.4f}", refresh=False)
                self._validate_and_evaluate(metrics, bar)
                if self._is_due(trainer.checkpoint_every):
                    self._save()
            metrics.plot()

    def _train_step(self) -> tuple[Tensor, Tensor]:
        """One optimiser step; the loss and the gradient norm stay on the device."""
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate(self.step)
        batch = self.batches.batch(self.step)
        generator = torch.Generator(self.device).manual_seed(mixed_seed(self.config.seed, 1, self.step))
        with self._autocast():
            loss = self.policy.loss(batch.observations, batch.actions, generator)
        loss.backward()
        grad_norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.config.trainer.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update(self.policy, self.step)
        return loss.detach(), grad_norm

    def _validate_and_evaluate(self, metrics: Metrics, bar: Any) -> None:
        values: dict[str, float] = {}
        if self.validation is not None and self._is_due(self.config.trainer.validate_every):
            values["validation_loss"] = self._validation_loss()
        if self.config.env is not None and self._is_due(self.config.trainer.evaluate_every):
            seeds = range(self.config.evaluation.seed, self.config.evaluation.seed + self.config.evaluation.episodes)
            batch = self.config.evaluation.inference_batch
            summary = summarize(evaluate(self.ema.policy, self.config.env, self.config.sampler, seeds, batch))
            values |= {key: summary[key] for key in ("mean_score", "success_rate")}
            if summary["mean_score"] > self.best_score:
                self.best_score = summary["mean_score"]
                self._save(is_best=True)
        if values:
            metrics.write(self.step, values)
            metrics.plot()
            bar.write(f"step {self.step}: " + ", ".join(f"{key} {value:.4g}" for key, value in values.items()))

    def _validation_loss(self) -> float:
        """The averaged weights' loss on the validation windows, with the same levels and noise every time."""
        assert self.validation is not None
        generator = torch.Generator(self.device).manual_seed(mixed_seed(self.config.seed, 2))
        with torch.inference_mode(), self._autocast():
            return float(self.ema.policy.loss(self.validation.observations, self.validation.actions, generator))

    def _learning_rate(self, step: int) -> float:
        """Linear warm-up, then a half cosine to 0 at the last step."""
        trainer = self.config.trainer
        warmup = min(1.0, (step + 1) / max(1, trainer.warmup_steps))
        progress = max(0.0, (step - trainer.warmup_steps) / max(1, trainer.steps - trainer.warmup_steps))
        return trainer.learning_rate * warmup * 0.5 * (1.0 + math.cos(math.pi * progress))

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.config.trainer.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def _is_due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.config.trainer.steps

    def _save(self, is_best: bool = False) -> None:
        """Write checkpoints/step_N unless it is there, then let `last`, and `best` if it is, name it."""
        folder = self.folder / "checkpoints" / f"step_{self.step}"
        if not folder.exists():
            self.ema.policy.metadata = {**self.policy.metadata, "step": self.step}
            tensors = {"model": self.ema.policy.state_dict(), "training_state": self._training_state()}
            checkpoint.write(folder, self.ema.policy.checkpoint_config(), tensors)
        checkpoint.point(folder.parent / "last", folder)
        if is_best:
            checkpoint.point(folder.parent / "best", folder)

    def _training_state(self) -> dict[str, Tensor]:
        state = {f"model.{name}": value for name, value in self.policy.state_dict().items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            state |= {f"optimizer.{index}.{name}": value for name, value in moments.items()}
        return state | {"best_score": torch.tensor(self.best_score, dtype=torch.float64)}

    def _resume(self) -> None:
        """Go on from checkpoints/last as if there had been no interruption."""
        folder = checkpoint.resolve(self.folder / "checkpoints" / "last")
        content = checkpoint.read_config(folder)
        _check_same_settings(content["training"], settings(self.config))
        self.ema.policy.load_state_dict(checkpoint.read_tensors(folder, "model"))
        state = checkpoint.read_tensors(folder, "training_state")
        weights = {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}
        check_tensors(f"checkpoint: {folder}", weights, self.policy.state_dict())
        self.policy.load_state_dict(weights)
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in state.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".")
                moments.setdefault(int(index), {})[key] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        self.step = int(content["step"])
        self.best_score = float(state["best_score"])
        for stale in (folder.parent).glob(".step_*"):  # a write that was killed
            shutil.rmtree(stale, ignore_errors=True)


def policy_config(config: TrainConfig, data: Demonstrations) -> PolicyConfig:
    """The policy that these settings and data call for."""
    return PolicyConfig(
        observations={key: value.shape[1] for key, value in data.observations.items()},
        action_dim=data.actions.shape[1],
        normalizer=config.data.normalizer,
        window=config.window,
        model=config.model,
        diffusion=config.diffusion,
    )


def settings(config: TrainConfig) -> dict[str, Any]:
    """The settings on which the weights depend; a resumed run must have the same."""
    return {key: value for key, value in asdict(config).items() if key in RESUMABLE}


def check_trainer(trainer: TrainerConfig) -> None:
    """Raise ValueError on settings that cannot work."""
    for name in ("steps", "batch_size", "log_every", "validate_every", "evaluate_every", "checkpoint_every"):
        if getattr(trainer, name) < 1:
            raise ValueError(f"trainer: {name} {getattr(trainer, name)} must be at least 1")
    if not trainer.learning_rate > 0:
        raise ValueError(f"trainer: learning_rate {trainer.learning_rate} must be above 0")
    if trainer.precision not in ("float32", "bfloat16"):
        raise ValueError(f"trainer: precision {trainer.precision!r} must be float32 or bfloat16")
    if len(trainer.betas) != 2:
        raise ValueError(f"trainer: betas {list(trainer.betas)} must be two numbers")


def choose_device(name: str) -> torch.device:
    """`auto` is cuda, mps or cpu, the first there is."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, is_there in available.items() if is_there))
    if not available.get(name.split(":")[0], False):
        there = ", ".join(kind for kind, is_there in available.items() if is_there)
        raise ValueError(f"device: {name!r} is not available, expected auto or one of {there}")
    return torch.device(name)


def _load(config: TrainConfig) -> Demonstrations:
    data = config.data
    if not isinstance(data.observations, dict):
        raise ValueError(
            f"data: observations is {data.observations!r}, expected e.g. {{state: [state]}}: key to arrays"
        )
    return load_demonstrations(find_data_set(data.path), data.observations, data.action)


def _check_same_settings(found: dict[str, Any], expected: dict[str, Any]) -> None:
    different = sorted(_flatten(found).items() ^ _flatten(expected).items())
    if different:
        names = ", ".join(sorted({name for name, _ in different}))
        raise ValueError(
            f"resume: the checkpoint was trained with other settings of {names}; give the same, or a new folder"
        )


def _flatten(value: Any, prefix: str = "") -> dict[str, str]:
    if not isinstance(value, dict):
        return {prefix: repr(value)}
    return {k: v for key, item in value.items() for k, v in _flatten(item, f"{prefix}.{key}".strip(".")).items()}
