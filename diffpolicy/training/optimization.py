"""The optimiser step: AdamW with warm-up and cosine decay, gradient clipping, and the average of the weights.

Random numbers, learning rate and EMA decay are functions of (seed, step).
"""

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diffpolicy.policy.protocol import Policy
from diffpolicy.system.distributed import Ranks
from diffpolicy.system.replay import Replays
from diffpolicy.training.batches import Batch, mixed_seed
from diffpolicy.training.ema import Ema
from diffpolicy.training.run_settings import learning_rate
from diffpolicy.training.settings import TrainerConfig
from diffpolicy.training.sharded_loss import ShardedLoss


class Optimization:
    """Trains `policy` and updates `ema`.

    Attributes:
        optimizer: AdamW, with one group for each parameter group of the policy.
    """

    def __init__(self, policy: Policy, ema: Ema, config: TrainerConfig, seed: int, ranks: Ranks) -> None:
        self._policy, self._ema, self._config, self._seed, self._ranks = policy, ema, config, seed, ranks
        self._loss: nn.Module = ShardedLoss(policy, ranks)
        self._generator = torch.Generator(policy.device)
        self._replays = Replays() if config.compile and ranks.count == 1 else None
        self.optimizer = torch.optim.AdamW(
            policy.parameter_groups(),
            lr=config.learning_rate,
            betas=(config.betas[0], config.betas[1]),
            weight_decay=config.weight_decay,
            fused=True,
        )

    def share(self) -> None:
        """Average the gradients over all processes from now on; call this once the initial weights are loaded."""
        self._loss = self._ranks.parallel(self._loss)

    def step(self, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
        """Run optimiser step `step`; returns the loss and the gradient norm, scalars that stay on the device."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self._config, step) * group.get("lr_scale", 1.0)
        self._generator.manual_seed(mixed_seed(self._seed, 1, step))
        if self._replays is None:
            loss, grad_norm = self._gradient(batch, step)
        else:
            loss, grad_norm = self._replayed_gradient(self._replays, batch, step)
        self.optimizer.step()
        self._policy.stepped(step)
        self._ema.update(self._policy, step)
        return loss, grad_norm

    def _gradient(self, batch: Batch, step: int | Tensor) -> tuple[Tensor, Tensor]:
        """The loss and the gradient norm; leaves the clipped gradient in the parameters."""
        self.optimizer.zero_grad()
        with self.autocast():
            loss = self._loss(batch, self._generator, step)
        loss.backward()
        return loss.detach(), torch.nn.utils.clip_grad_norm_(self._policy.parameters(), self._config.max_grad_norm)

    def _replayed_gradient(self, replays: Replays, batch: Batch, step: int) -> Sequence[Tensor]:
        """The same on a GPU as one CUDA graph, which writes each gradient to the same memory at every step."""
        parts = [batch.observations, batch.auxiliary, {} if batch.counts is None else {"counts": batch.counts}]

        def gradient(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
            now, actions, *others = tensors
            left = iter(others)
            observations, auxiliary, counts = ({name: next(left) for name in part} for part in parts)
            return self._gradient(Batch(observations, actions, counts.get("counts"), auxiliary), now)

        # A number would be the same at every replay; filling a tensor does not wait for the GPU.
        inputs = [torch.full((), step, device=batch.actions.device), batch.actions]
        inputs += [one for part in parts for one in part.values()]
        return replays.run(self._loss, tuple(map(tuple, parts)), gradient, inputs, [self._generator])

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The autocast context of the precision in the settings."""
        if self._config.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self._policy.device.type, dtype=torch.bfloat16)
