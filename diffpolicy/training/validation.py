"""The averaged policy on windows that are held out: its loss, and the error of the actions that it samples."""

import contextlib

import torch
from torch import Tensor

from diffpolicy.data.demonstrations import Demonstrations
from diffpolicy.policy.protocol import Policy
from diffpolicy.system.tables import Choice
from diffpolicy.training.batches import Batch, mixed_seed
from diffpolicy.training.sharded_loss import batch_loss

ACTION_WINDOWS = 256  # windows whose actions are sampled, which takes as many evaluations as the sampler has steps
IMAGE_WINDOWS = 64  # at a time, because an encoder's activations of many images would not fit into memory


class Validation:
    """Measures a policy on the windows of `batch`, with the same levels and noise every time.

    The action error is the root mean square error of the actions to execute, sampled with `sampler`, in units of each
    action feature's standard deviation in the demonstrations.
    """

    def __init__(self, batch: Batch, data: Demonstrations, sampler: Choice, seed: int) -> None:
        self._batch, self._sampler, self._seed = batch, sampler, seed
        has_images = any(value.dtype == torch.uint8 for value in batch.observations.values())
        self._at_a_time = IMAGE_WINDOWS if has_images else len(batch.actions)
        spread = data.actions.std(dim=0)
        self._scale = torch.where(spread > 0, spread, 1.0).to(batch.actions.device)

    def __call__(self, policy: Policy, precision: contextlib.AbstractContextManager, step: int) -> dict[str, float]:
        """{name: value} for the metrics; the loss is computed in `precision`."""
        with torch.inference_mode(), precision:
            loss = self._loss(policy, step)
        return {"validation_loss": loss, "validation_action_error": self._action_error(policy)}

    def _loss(self, policy: Policy, step: int) -> float:
        """The mean loss of equal parts of the windows; a few windows may be left out to make them equal."""
        total = len(self._batch.actions)
        count = -(-total // self._at_a_time)
        losses = []
        for index in range(count):
            generator = torch.Generator(policy.device).manual_seed(mixed_seed(self._seed, 2))  # draws for all parts
            rows = slice(index * (total // count), (index + 1) * (total // count))
            losses.append(float(batch_loss(policy, self._batch.rows(rows), generator, (index, count), step)))
        return sum(losses) / count

    def _action_error(self, policy: Policy) -> float:
        total = len(self._batch.actions)
        chosen = torch.linspace(0, total - 1, min(ACTION_WINDOWS, total)).long().to(self._scale.device)
        sampling = policy.sampling(self._sampler)
        generators = [torch.Generator().manual_seed(mixed_seed(self._seed, 3, index)) for index in range(len(chosen))]
        parts: list[Tensor] = []
        for start in range(0, len(chosen), self._at_a_time):
            rows = slice(start, start + self._at_a_time)
            seen = {key: value[chosen[rows]] for key, value in self._batch.observations.items()}
            chunk = policy.predict_action_chunk(seen, generators[rows], sampling.sampler, guide=sampling.guide)
            parts.append(chunk.actions)
        actions = torch.cat(parts)
        window = policy.config.window
        present = window.n_obs_steps - 1
        expected = self._batch.actions[chosen, present : present + window.n_action_steps]
        return float(((actions - expected) / self._scale).square().mean().sqrt())
