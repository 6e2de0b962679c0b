"""The training loop for all methods: optimisation, EMA, validation, evaluation, checkpoints and resuming.

Random numbers, learning rate and EMA decay are functions of (seed, step). A checkpoint therefore only needs the
weights, their averages and the optimiser's moments.
"""

import contextlib
import math
import signal
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from diffpolicy.evaluation.env_check import check_env
from diffpolicy.policy.pretrained import checkpoint_config
from diffpolicy.system.device import conditions
from diffpolicy.system.distributed import ALONE, Ranks, lost_ranks_named
from diffpolicy.system.schema import check_settings
from diffpolicy.system.stopping import StoppedError, StopSignals
from diffpolicy.training.data_formats import load_data
from diffpolicy.training.data_report import log_report
from diffpolicy.training.ema import Ema
from diffpolicy.training.evaluating import Evaluation
from diffpolicy.training.optimization import Optimization
from diffpolicy.training.recent import RecentSteps
from diffpolicy.training.run_folder import RunFolder
from diffpolicy.training.run_log import Metrics, NoMetrics
from diffpolicy.training.run_settings import (
    REPORTING,
    check_same_settings,
    learning_rate,
    settings_of_run,
)
from diffpolicy.training.settings import TrainConfig
from diffpolicy.training.splits import split_windows
from diffpolicy.training.starting import initialize, learn_codec, warn_of_extension, warn_of_other_conditions
from diffpolicy.training.state import pack, unpack, unpack_average
from diffpolicy.training.teaching import untrained_policy
from diffpolicy.training.validation import Validation

AGREE_EVERY = 10  # steps between the points where several processes agree whether to stop


class Trainer:
    """Trains a policy as configured, in the run folder `folder`. With several processes, only the first writes there.

    Raises:
        ValueError: settings or data do not fit, the folder holds a run that is not to be resumed or, on resume, the
            checkpoint is missing, damaged or has other settings.
        FileNotFoundError: there is no data set.
        BlockingIOError: another process trains in the folder.
    """

    def __init__(self, config: TrainConfig, folder: str | Path, ranks: Ranks = ALONE) -> None:
        check_settings(config, "")
        if config.env is not None:
            ranks.shard(range(config.evaluation.episodes))
        self.config = config
        self.ranks = ranks
        self.device = ranks.device(config.device)
        self.step = 0
        self.best_score = -math.inf
        self._is_evaluated = True  # False in a checkpoint saved before an evaluation
        self._recent = RecentSteps(ranks)
        self._stop = StopSignals()
        self.evaluation = config.env and Evaluation(config, config.env, ranks, self._stop, self._stop_if_asked)
        self.folder = RunFolder(Path(folder), config.resume, ranks.is_first)
        self.checkpoints = self.folder.checkpoints
        try:
            self._prepare(config, ranks)
        except BaseException:
            self.folder.release()
            raise

    def _prepare(self, config: TrainConfig, ranks: Ranks) -> None:
        data = load_data(config.data, config.env, config.limits.data_s)
        self.policy = untrained_policy(config, data)
        if ranks.is_first:
            log_report(data, self.policy.config)
        if config.init_from is not None and not config.resume:
            initialize(self.policy, config.init_from, data)
        self.settings = settings_of_run(config, self.policy, data)
        self.conditions = {**conditions(self.device), "processes": str(ranks.count)}
        described = {"task": config.task, "env": self.settings["env"], "training": self.settings}
        self.policy.metadata |= {**described, "conditions": self.conditions}
        self.policy.to(self.device)
        self.batches, held_out = split_windows(config, data, self.device)
        if not config.resume:
            learn_codec(self.policy, self.batches.action_windows, config.seed)
        self.validation = None if held_out is None else Validation(held_out, data, config.sampler, config.seed)
        self._rows = ranks.rows(self.batches.batch_size)
        self.ema = Ema(self.policy, config.trainer.ema_power, config.trainer.ema_max_decay)
        if config.trainer.compile:
            self.policy.network.compile(fullgraph=True)  # not the average: its batch size varies
        self.optimization = Optimization(self.policy, self.ema, config.trainer, config.seed, ranks)
        if config.resume:
            self._resume()
        if config.env is not None:
            check_env(config.env, self.policy, config.limits.env_s)
        self.optimization.share()

    def run(self) -> signal.Signals | None:
        """Train to the last step, or until SIGTERM or Ctrl-C; then save and return the signal.

        Raises:
            OSError: a file cannot be written, data cannot be read, or a process died.
            FloatingPointError: a loss or gradient norm is not finite.
        """
        steps = self.config.trainer.steps
        shown = {"desc": self.config.task, "unit": "step", "dynamic_ncols": True, "disable": not self.ranks.is_first}
        self.claim()
        try:
            metrics = self._open()
            bar = tqdm(total=steps, initial=self.step, **shown)
            with self._stop, contextlib.closing(metrics), contextlib.closing(self.batches), bar:
                try:
                    self._train(metrics, bar)
                except StoppedError:
                    self._save()
        except (FloatingPointError, OSError) as error:
            kind = next(kind for kind in (FloatingPointError, ChildProcessError, OSError) if isinstance(error, kind))
            left = self.checkpoints.left(can_go_on=kind is not FloatingPointError)  # which resuming would meet again
            raise kind(f"training, step {self.step}: {error}; {left}") from error
        finally:
            self.folder.release()
        self.ranks.largest(0)  # wait: if a process ended now, torchrun would end the first, which may be writing
        return self._stop.received if self.step < steps or not self._is_evaluated else None

    def claim(self) -> None:
        """Take the run folder for this process until `run`, which also calls this, has ended.

        Raises:
            BlockingIOError: another process trains in the folder.
            ValueError: another process has trained there since this trainer was made.
        """
        self.folder.claim()

    def _open(self) -> Metrics | NoMetrics:
        if self.ranks.is_first:
            metrics = Metrics(self.folder.path, self.config.logger, asdict(self.config), self.step)
            for score in metrics.values(self.step, "mean_score"):  # the evaluation after the save is done already
                self._is_evaluated, self.best_score = True, max(self.best_score, score)
        else:
            metrics = NoMetrics()
        known = torch.tensor([self._is_evaluated, self.best_score], dtype=torch.float64)
        known = self.ranks.total(known if self.ranks.is_first else torch.zeros(2, dtype=torch.float64))
        self._is_evaluated, self.best_score = bool(known[0]), float(known[1])
        return metrics

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
        with self._stop.at_once() if self.ranks.count == 1 else contextlib.nullcontext():  # reading may hang
            batch = self.batches.batch(self.step, self._rows)
        with lost_ranks_named(self.ranks):
            return self.optimization.step(batch, self.step)

    def _validate_and_evaluate(self, metrics: Metrics | NoMetrics, bar: Any) -> None:
        values: dict[str, float] = {}
        if self.validation is not None and self._is_due(self.config.trainer.validate_every):
            self.ema.sync(self.policy)
            values |= self.validation(self.ema.policy, self.optimization.autocast(), self.step)
        if self.evaluation is not None and self._is_due(self.config.trainer.evaluate_every):
            self._is_evaluated = False
            self._save()  # before: an env may hang or die
            values |= self.evaluation(self.ema.policy, self.step, self.checkpoints.left(can_go_on=True))
            self._is_evaluated = True
        score = values.get("mean_score", -math.inf)
        if self.evaluation is None:
            score = -values.get("validation_action_error", math.inf)
        is_best = score > self.best_score
        self.best_score = score if is_best else self.best_score
        if is_best and self.evaluation is not None:  # before the row, which says that the evaluation is done
            self._save(is_best)
        if values:
            metrics.write(self.step, values)
            metrics.plot()
            if not bar.disable:
                bar.write(f"step {self.step}: " + ", ".join(f"{key} {value:.4g}" for key, value in values.items()))
        if is_best:
            self._save(is_best)

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
        self.ranks.largest(0)  # wait until the first process has mended the links
        content, model, state = self.checkpoints.read_last()
        check_same_settings(self.policy, content["training"], self.settings)
        numbers = unpack(state, self.policy, self.optimization.optimizer, content["step"])
        unpack_average(model, self.ema.policy)
        self.step = content["step"]
        self.best_score = float(numbers["best_score"])
        self._is_evaluated = bool(numbers["is_evaluated"])
        self._recent.restore(numbers["recent"].to(self.device))
        self.policy.metadata |= {"init_from": content["init_from"]} if "init_from" in content else {}
        if self.ranks.is_first:
            warn_of_other_conditions(content.get("conditions", {}), self.conditions)
            warn_of_extension(int(content["training"]["trainer"]["steps"]), self.config.trainer, self.step)
