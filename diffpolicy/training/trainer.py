"""The training loop for all methods: optimisation, EMA, validation, evaluation, checkpoints and resuming.

Random numbers, learning rate and EMA decay are functions of (seed, step). A checkpoint therefore only needs the
weights, their averages and the optimiser's moments.
"""

import contextlib
import math
import signal
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from diffpolicy.evaluation.env_check import check_env
from diffpolicy.evaluation.evaluate import check_evaluation, evaluate, summarize
from diffpolicy.evaluation.rollout import Episode
from diffpolicy.evaluation.settings import EnvConfig
from diffpolicy.evaluation.sharded import sharded
from diffpolicy.policy.pretrained import checkpoint_config
from diffpolicy.system.distributed import ALONE, Ranks
from diffpolicy.system.stopping import StoppedError, StopSignals
from diffpolicy.training.batches import mixed_seed
from diffpolicy.training.data_formats import load_data
from diffpolicy.training.data_report import log_report
from diffpolicy.training.ema import Ema
from diffpolicy.training.optimization import Optimization
from diffpolicy.training.recent import RecentSteps
from diffpolicy.training.run_checkpoints import RunCheckpoints
from diffpolicy.training.run_log import Metrics, NoMetrics, check_logger
from diffpolicy.training.run_settings import (
    REPORTING,
    check_same_settings,
    check_trainer,
    learning_rate,
    new_policy,
    settings_of_run,
)
from diffpolicy.training.settings import TrainConfig
from diffpolicy.training.splits import split_windows
from diffpolicy.training.state import pack, unpack

AGREE_EVERY = 10  # steps between the points where several processes agree whether to stop


class Trainer:
    """Trains a policy as configured, in the run folder `folder`. With several processes, only the first writes there.

    Raises:
        ValueError: settings or data do not fit, the folder holds a run that is not to be resumed or, on resume, the
            checkpoint is missing, damaged or has other settings.
        FileNotFoundError: there is no data set.
    """

    def __init__(self, config: TrainConfig, folder: str | Path, ranks: Ranks = ALONE) -> None:
        check_trainer(config.trainer)
        check_logger(config.logger)
        check_evaluation(config.evaluation.episodes, config.evaluation.inference_batch)
        if config.env is not None:
            ranks.shard(range(config.evaluation.episodes))
        self.config = config
        self.folder = Path(folder)
        self.checkpoints = RunCheckpoints(self.folder)
        self.checkpoints.check(config.resume)
        self.ranks = ranks
        self.device = ranks.device(config.device)
        data = load_data(config.data)
        self.policy = new_policy(config, data)
        if ranks.is_first:
            log_report(data, self.policy.config)
        if config.env is not None:
            check_env(config.env, self.policy)
        self.settings = settings_of_run(config, self.policy, data)
        self.policy.metadata = {"task": config.task, "env": self.settings["env"], "training": self.settings}
        self.policy.to(self.device)
        self.batches, self.validation = split_windows(config, data, self.device)
        self._rows = ranks.rows(self.batches.batch_size)
        self.ema = Ema(self.policy, config.trainer.ema_power, config.trainer.ema_max_decay)
        if config.trainer.compile:
            self.policy.network.compile(fullgraph=True)  # not the average: its batch size varies
        self.optimization = Optimization(self.policy, self.ema, config.trainer, config.seed, ranks)
        self.step = 0
        self.best_score = -math.inf
        self._is_evaluated = True  # False in a checkpoint saved when an evaluation was interrupted
        self._recent = RecentSteps(ranks)
        self._stop = StopSignals()
        if config.resume:
            self._resume()
        self.optimization.share()

    def run(self) -> signal.Signals | None:
        """Train to the last step, or until SIGTERM or Ctrl-C; then save and return the signal.

        Raises:
            OSError: a file cannot be written, data cannot be read, or a process died.
            FloatingPointError: a loss or gradient norm is not finite.
        """
        steps = self.config.trainer.steps
        bar = tqdm(
            total=steps,
            initial=self.step,
            desc=self.config.task,
            unit="step",
            dynamic_ncols=True,
            disable=not self.ranks.is_first,
        )
        try:
            metrics = self._open()
            with self._stop, contextlib.closing(metrics), contextlib.closing(self.batches), bar:
                try:
                    self._train(metrics, bar)
                except StoppedError:
                    self._save()
        except FloatingPointError as error:  # resuming would fail again
            left = self.checkpoints.left(can_go_on=False)
            raise FloatingPointError(f"training, step {self.step}: {error}; {left}") from error
        except OSError as error:
            kind = ChildProcessError if isinstance(error, ChildProcessError) else OSError
            left = self.checkpoints.left(can_go_on=True)
            raise kind(f"training, step {self.step}: {error}; {left}") from error
        self.ranks.largest(0)  # wait: if a process ended now, torchrun would end the first, which may be writing
        return self._stop.received if self.step < steps or not self._is_evaluated else None

    def _open(self) -> Metrics | NoMetrics:
        if not self.ranks.is_first:
            return NoMetrics()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.checkpoints.clean()
        return Metrics(self.folder, self.config.logger, asdict(self.config), self.step, self._is_evaluated)

    def _stop_if_asked(self) -> None:
        """Stop all processes at the same step, whichever of them got the signal."""
        if number := self.ranks.largest(self._stop.received or 0):
            self._stop.received = signal.Signals(number)
        self._stop.check()

    def _train(self, metrics: Metrics | NoMetrics, bar: Any) -> None:
        trainer = self.config.trainer
        if not self._is_evaluated:
            self._validate_and_evaluate(metrics, bar)
        while self.step < trainer.steps:
            if self.ranks.count == 1 or self.step % AGREE_EVERY == 0:
                self._stop_if_asked()
            self._recent.add(*self.train_step())
            self.step += 1
            bar.update()
            self._report(metrics, bar)
            if self._is_due(trainer.checkpoint_every):
                self._save()
        metrics.plot()

    def _report(self, metrics: Metrics | NoMetrics, bar: Any) -> None:
        trainer = self.config.trainer
        if any(self._is_due(getattr(trainer, name)) for name in REPORTING):
            loss, grad_norm = self._recent.checked().mean(dim=0).tolist()
            if self._is_due(trainer.log_every):
                rate = learning_rate(trainer, self.step - 1)
                metrics.write(self.step, {"loss": loss, "learning_rate": rate, "grad_norm": grad_norm})
                bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
                self._recent.clear()
        self._validate_and_evaluate(metrics, bar)

    def train_step(self) -> tuple[Tensor, Tensor]:
        """Run one optimiser step; returns the loss and the gradient norm, scalars that stay on the device."""
        return self.optimization.step(self.batches.batch(self.step, self._rows), self.step)

    def _validate_and_evaluate(self, metrics: Metrics | NoMetrics, bar: Any) -> None:
        values: dict[str, float] = {}
        if self.validation is not None and self._is_due(self.config.trainer.validate_every):
            values["validation_loss"] = self._validation_loss()
        if self.config.env is not None and self._is_due(self.config.trainer.evaluate_every):
            values |= self._evaluation(self.config.env)
        if values:
            metrics.write(self.step, values)
            metrics.plot()
            if not bar.disable:
                bar.write(f"step {self.step}: " + ", ".join(f"{key} {value:.4g}" for key, value in values.items()))
        if values.get("mean_score", -math.inf) > self.best_score:
            self.best_score = values["mean_score"]
            self._save(is_best=True)

    def _evaluation(self, env: EnvConfig) -> dict[str, float]:
        """Score and success rate of the averaged weights; saves a checkpoint if the evaluation is interrupted."""
        config = self.config.evaluation
        self._is_evaluated = False

        def run(seeds: Sequence[int]) -> list[Episode]:
            policy, sampler = self.ema.policy, self.config.sampler
            return evaluate(policy, env, sampler, seeds, config.inference_batch, on_tick=self._stop.check)

        try:
            episodes = sharded(self.ranks, range(config.seed, config.seed + config.episodes), run)
        except Exception as error:
            self._stop_if_asked()  # a signal to all processes also kills the env processes
            self._save()
            if isinstance(error, OSError | EOFError):  # raised by a pipe to a dead process
                raise ChildProcessError(f"the evaluation failed because an env died ({error!r})") from error
            raise
        self._is_evaluated = True
        summary = summarize(episodes)
        return {key: summary[key] for key in ("mean_score", "success_rate")}

    def _validation_loss(self) -> float:
        """The loss of the averaged weights on the validation windows, with the same levels and noise every time."""
        assert self.validation is not None
        self.ema.sync(self.policy)
        generator = torch.Generator(self.device).manual_seed(mixed_seed(self.config.seed, 2))
        with torch.inference_mode(), self.optimization.autocast():
            batch = self.validation
            return float(self.ema.policy.loss(batch.observations, batch.actions, generator, step=self.step))

    def _is_due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.config.trainer.steps

    def _save(self, is_best: bool = False) -> None:
        numbers = {
            "best_score": torch.tensor(self.best_score, dtype=torch.float64),
            "is_evaluated": torch.tensor(self._is_evaluated),
            "recent": self._recent.checked(),
        }
        if not self.ranks.is_first:
            return
        state = pack(self.policy, self.optimization.optimizer, numbers)
        average = self.ema.policy
        average.metadata = {**self.policy.metadata, "step": self.step}
        self.checkpoints.write(self.step, checkpoint_config(average), average.acting_state(), state, is_best)

    def _resume(self) -> None:
        """Restore the state from checkpoints/last, as if there had been no interruption."""
        content, model, state = self.checkpoints.read_last()
        check_same_settings(self.policy, content["training"], self.settings)
        self.ema.policy.load_state_dict(model, strict=False)
        numbers = unpack(state, self.policy, self.optimization.optimizer)
        self.step = int(content["step"])
        self.best_score = float(numbers["best_score"])
        self._is_evaluated = bool(numbers["is_evaluated"])
        self._recent.restore(numbers["recent"].to(self.device))
