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

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from diffpolicy import checkpoint
from diffpolicy.batches import WindowBatches, mixed_seed
from diffpolicy.config import PolicyConfig, TrainConfig
from diffpolicy.data.demonstrations import Demonstrations, load_demonstrations
from diffpolicy.data.sources import find_data_set
from diffpolicy.data.windows import split_episodes
from diffpolicy.device import choose_device
from diffpolicy.ema import Ema
from diffpolicy.evaluation import check_evaluation, evaluate, summarize
from diffpolicy.metrics import Metrics, check_logger
from diffpolicy.policy import DiffusionPolicy
from diffpolicy.rollout import check_env
from diffpolicy.trainer_settings import check_same_settings, check_trainer, settings_of_run

VALIDATION_WINDOWS = 1024


class Trainer:
    """Trains a policy as `config` says, in the run folder `folder`.

    Raises:
        ValueError: settings or data that do not fit, a checkpoint of other settings on resume.
        FileNotFoundError: no data, or nothing to resume.
        FloatingPointError: a loss or gradient that is not finite.
    """

    def __init__(self, config: TrainConfig, folder: Path) -> None:
        check_trainer(config.trainer)
        check_logger(config.logger)
        check_evaluation(config.evaluation.episodes, config.evaluation.inference_batch)
        if config.env is not None:
            check_env(config.env)
        self.config = config
        self.folder = folder
        self.device = choose_device(config.device)
        data = _load(config)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.policy = DiffusionPolicy(_policy_config(config, data))
        self.policy.sampler(config.sampler)  # refuse what cannot be sampled before any work
        self.policy.guide(config.sampler.guidance)
        self.policy.fit_normalizers(data.observations, data.actions)
        self.settings = settings_of_run(config, data)
        self.policy.metadata = {"task": config.task, "env": self.settings["env"], "training": self.settings}
        self.policy.to(self.device)
        train, validation = split_episodes(data.n_episodes, config.data.validation_fraction, config.seed)
        self.batches = self._windows("training", data, train)
        self.validation = None
        if len(validation):
            self.validation = self._windows("validation", data, validation).first(VALIDATION_WINDOWS)
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
        for stale in (self.folder / "checkpoints").glob(".step_*"):  # writes that were killed
            shutil.rmtree(stale, ignore_errors=True)
        trainer = self.config.trainer
        metrics = Metrics(self.folder, self.config.logger, asdict(self.config), self.step)
        bar = tqdm(total=trainer.steps, initial=self.step, desc=self.config.task, unit="step", dynamic_ncols=True)
        losses: list[Tensor] = []
        grad_norms: list[Tensor] = []
        reports = (trainer.log_every, trainer.validate_every, trainer.evaluate_every, trainer.checkpoint_every)
        with contextlib.closing(metrics), bar:
            while self.step < trainer.steps:
                loss, grad_norm = self.train_step()
                losses.append(loss)
                grad_norms.append(grad_norm)
                self.step += 1
                bar.update()
                if any(map(self._is_due, reports)):
                    _check_finite(self.step, losses, grad_norms)
                if self._is_due(trainer.log_every):
                    values = {"loss": _mean(losses), "learning_rate": self._learning_rate(self.step - 1)}
                    metrics.write(self.step, {**values, "grad_norm": _mean(grad_norms)})
                    bar.set_postfix(loss=f"{values['loss']:.4f}", refresh=False)
                    losses.clear()
                    grad_norms.clear()
                self._validate_and_evaluate(metrics, bar)
                if self._is_due(trainer.checkpoint_every):
                    self._save()
            metrics.plot()

    def _windows(self, split: str, data: Demonstrations, episodes: np.ndarray) -> WindowBatches:
        config = self.config
        try:
            return WindowBatches(data, episodes, config.window, config.trainer.batch_size, config.seed, self.device)
        except ValueError as error:
            raise ValueError(f"{split} split, {len(episodes)} of {data.n_episodes} episodes: {error}") from error

    def train_step(self) -> tuple[Tensor, Tensor]:
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
        if is_best:  # before `last`: a run that is resumed from there must not have to choose it again
            checkpoint.point(folder.parent / "best", folder)
        checkpoint.point(folder.parent / "last", folder)

    def _training_state(self) -> dict[str, Tensor]:
        state = {f"model.{name}": value for name, value in self.policy.state_dict().items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            state |= {f"optimizer.{index}.{name}": value for name, value in moments.items()}
        return state | {"best_score": torch.tensor(self.best_score, dtype=torch.float64)}

    def _resume(self) -> None:
        """Go on from checkpoints/last as if there had been no interruption."""
        folder = checkpoint.resolve(self.folder / "checkpoints" / "last")
        content = checkpoint.read_config(folder)
        check_same_settings(content["training"], self.settings)
        self.ema.policy.load_state_dict(checkpoint.read_tensors(folder, "model"))
        state = checkpoint.read_tensors(folder, "training_state")
        weights = {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}
        checkpoint.check_tensors(f"checkpoint: {folder}", weights, self.policy.state_dict())
        self.policy.load_state_dict(weights)
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in state.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".")
                moments.setdefault(int(index), {})[key] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        self.step = int(content["step"])
        self.best_score = float(state["best_score"])


def _load(config: TrainConfig) -> Demonstrations:
    data = config.data
    if not isinstance(data.observations, dict) or not all(isinstance(key, str) for key in data.observations):
        raise ValueError(
            f"data: observations is {data.observations!r}, expected e.g. {{state: [state]}}: key to arrays"
        )
    return load_demonstrations(find_data_set(data.path), data.observations, data.action)


def _policy_config(config: TrainConfig, data: Demonstrations) -> PolicyConfig:
    return PolicyConfig(
        observations={key: value.shape[1] for key, value in data.observations.items()},
        action_dim=data.actions.shape[1],
        normalizer=config.data.normalizer,
        window=config.window,
        model=config.model,
        diffusion=config.diffusion,
    )


def _mean(values: list[Tensor]) -> float:
    return float(torch.stack(values).mean())


def _check_finite(step: int, losses: list[Tensor], grad_norms: list[Tensor]) -> None:
    """Before anything is evaluated or saved: weights are finite as long as these are."""
    loss, grad_norm = _mean(losses or [torch.zeros(())]), _mean(grad_norms or [torch.zeros(())])
    if not (math.isfinite(loss) and math.isfinite(grad_norm)):
        raise FloatingPointError(
            f"training: loss {loss}, gradient norm {grad_norm} at step {step}; the last checkpoint is intact. "
            "Lower trainer.learning_rate or look for outliers in the data"
        )
