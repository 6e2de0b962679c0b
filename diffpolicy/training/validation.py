"""The averaged policy on windows that are held out: its loss, and the error of the actions that it samples."""

import contextlib

import torch
from torch import Tensor

from diffpolicy.data.demonstrations import Demonstrations
from diffpolicy.policy.protocol import Policy
from diffpolicy.system.parts import WHOLE
from diffpolicy.system.tables import Choice
from diffpolicy.training.batches import Batch, mixed_seed
from diffpolicy.training.sharded_loss import batch_loss

ACTION_WINDOWS = 256  # windows whose actions are sampled, which takes as many evaluations as the sampler has steps


class Validation:
    """Measures a policy on the windows of `batch`, with the same levels and noise every time.

    The action error is the root mean square error of the actions to execute, sampled with `sampler`, in units of each
    action feature's standard deviation in the demonstrations.
    """

    def __init__(self, batch: Batch, data: Demonstrations, sampler: Choice, seed: int) -> None:
        self._batch, self._sampler, self._seed = batch, sampler, seed
        spread = data.actions.std(dim=0)
        self._scale = torch.where(spread > 0, spread, 1.0).to(batch.actions.device)

    def __call__(self, policy: Policy, precision: contextlib.AbstractContextManager, step: int) -> dict[str, float]:
        """{name: value} for the metrics; the loss is computed in `precision`."""
        batch, generator = self._batch, torch.Generator(policy.device).manual_seed(mixed_seed(self._seed, 2))
        with torch.inference_mode(), precision:
            loss = float(batch_loss(policy, batch, generator, WHOLE, step))
        return {"validation_loss": loss, "validation_action_error": self._action_error(policy)}

    def _action_error(self, policy: Policy) -> float:
        total = len(self._batch.actions)
        chosen = torch.linspace(0, total - 1, min(ACTION_WINDOWS, total)).long().to(self._scale.device)
        seen = {key: value[chosen] for key, value in self._batch.observations.items()}
        sampling = policy.sampling(self._sampler)
        generators = [torch.Generator().manual_seed(mixed_seed(self._seed, 3, index)) for index in range(len(chosen))]
        actions: Tensor = policy.predict_action_chunk(seen, generators, sampling.sampler, guide=sampling.guide).actions
        window = policy.config.window
        present = window.n_obs_steps - 1
        expected = self._batch.actions[chosen, present : present + window.n_action_steps]
        return float(((actions - expected) / self._scale).square().mean().sqrt())
