"""The one training loop: AdamW with warm-up and cosine, EMA, validation, evaluation, checkpoints, resume.

All randomness is a function of (seed, step), and so are learning rate and EMA decay: what must be saved is weights,
averages and the optimiser's moments.
"""

import contextlib
import math
import signal
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from diffpolicy import training_state
from diffpolicy.batches import WindowBatches, mixed_seed
from diffpolicy.config import EnvConfig, PolicyConfig, TrainConfig
from diffpolicy.data.demonstrations import Demonstrations, load_demonstrations
from diffpolicy.data.sources import find_data_set
from diffpolicy.data.windows import split_episodes
from diffpolicy.device import choose_device
from diffpolicy.ema import Ema
from diffpolicy.evaluation import check_evaluation, evaluate, summarize
from diffpolicy.metrics import Metrics, check_logger
from diffpolicy.policy import DiffusionPolicy
from diffpolicy.rollout import check_env
from diffpolicy.run_checkpoints import RunCheckpoints
from diffpolicy.stopping import StoppedError, StopSignals
from diffpolicy.trainer_settings import REPORTING, check_same_settings, check_trainer, settings_of_run

VALIDATION_WINDOWS = 1024


class Trainer:
    """Trains a policy as `config` says, in the run folder `folder`.

    Raises:
        ValueError: settings or data that do not fit, a checkpoint of other settings or a damaged one on resume.
        FileNotFoundError: no data.
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
        self.checkpoints = RunCheckpoints(folder)
        self.step = 0
        self.best_score = -math.inf
        self._is_evaluated = True  # false in a checkpoint that was saved on being stopped during an evaluation
        self._recent: list[Tensor] = []  # [2], loss and gradient norm of every step since the last row that was logged
        self._stop = StopSignals()
        if config.resume:
            self._resume()

    def run(self) -> signal.Signals | None:
        """Train to the last step, or until SIGTERM or Ctrl-C, which is then returned; all done so far is saved.

        Raises:
            OSError: a file cannot be written, an evaluation failed.
            FloatingPointError: a loss or gradient that is not finite.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self.checkpoints.clean()
        steps = self.config.trainer.steps
        bar = tqdm(total=steps, initial=self.step, desc=self.config.task, unit="step", dynamic_ncols=True)
        try:
            metrics = Metrics(self.folder, self.config.logger, asdict(self.config), self.step)
            with self._stop, contextlib.closing(metrics), bar:
                try:
                    self._train(metrics, bar)
                except StoppedError:
                    self._save()
        except (OSError, FloatingPointError) as error:
            raise type(error)(f"training, step {self.step}: {error}; {self.checkpoints.left()}") from error
        return self._stop.received if self.step < steps or not self._is_evaluated else None

    def _train(self, metrics: Metrics, bar: Any) -> None:
        trainer = self.config.trainer
        if not self._is_evaluated:
            self._validate_and_evaluate(metrics, bar)
        while self.step < trainer.steps:
            self._stop.check()
            self._recent.append(torch.stack(self.train_step()))
            self.step += 1
            bar.update()
            self._report(metrics, bar)
            if self._is_due(trainer.checkpoint_every):
                self._save()
        metrics.plot()

    def _report(self, metrics: Metrics, bar: Any) -> None:
        trainer = self.config.trainer
        if any(self._is_due(getattr(trainer, name)) for name in REPORTING):
            loss, grad_norm = self._checked_recent().mean(dim=0).tolist()
            if self._is_due(trainer.log_every):
                rate = self._learning_rate(self.step - 1)
                metrics.write(self.step, {"loss": loss, "learning_rate": rate, "grad_norm": grad_norm})
                bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
                self._recent.clear()
        self._validate_and_evaluate(metrics, bar)

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
            values |= self._evaluation(self.config.env)
        if values:
            metrics.write(self.step, values)
            metrics.plot()
            bar.write(f"step {self.step}: " + ", ".join(f"{key} {value:.4g}" for key, value in values.items()))
        if values.get("mean_score", -math.inf) > self.best_score:
            self.best_score = values["mean_score"]
            self._save(is_best=True)

    def _evaluation(self, env: EnvConfig) -> dict[str, float]:
        """Score and success of the averaged weights; saves the step where the evaluation does not come to its end."""
        config = self.config.evaluation
        seeds = range(config.seed, config.seed + config.episodes)
        self._is_evaluated = False
        try:
            episodes = evaluate(
                self.ema.policy, env, self.config.sampler, seeds, config.inference_batch, on_tick=self._stop.check
            )
        except Exception as error:
            self._stop.check()  # a signal to all processes ends the env's too
            self._save()
            if isinstance(error, OSError | EOFError):  # what a pipe to a dead process raises
                raise ChildProcessError(f"the evaluation broke off, an env died ({error!r})") from error
            raise
        self._is_evaluated = True
        summary = summarize(episodes)
        return {key: summary[key] for key in ("mean_score", "success_rate")}

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
        numbers = {
            "best_score": torch.tensor(self.best_score, dtype=torch.float64),
            "is_evaluated": torch.tensor(self._is_evaluated),
            "recent": self._checked_recent(),
        }
        state = training_state.pack(self.policy, self.optimizer, numbers)
        self.ema.policy.metadata = {**self.policy.metadata, "step": self.step}
        model = self.ema.policy.state_dict()
        self.checkpoints.write(self.step, self.ema.policy.checkpoint_config(), model, state, is_best)

    def _resume(self) -> None:
        """Go on from checkpoints/last as if there had been no interruption."""
        content, model, state = self.checkpoints.read_last()
        check_same_settings(content["training"], self.settings)
        self.ema.policy.load_state_dict(model)
        numbers = training_state.unpack(state, self.policy, self.optimizer)
        self.step = int(content["step"])
        self.best_score = float(numbers["best_score"])
        self._is_evaluated = bool(numbers["is_evaluated"])
        self._recent = list(numbers["recent"].to(self.device))

    def _checked_recent(self) -> Tensor:
        """[steps, 2] loss and gradient norm; weights are finite as long as these are, so this comes before saving."""
        if not self._recent:
            return torch.empty(0, 2)
        recent = torch.stack(self._recent)
        loss, grad_norm = recent.mean(dim=0).tolist()
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise FloatingPointError(
                f"loss {loss}, gradient norm {grad_norm}: lower trainer.learning_rate or look for outliers in the data"
            )
        return recent


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
