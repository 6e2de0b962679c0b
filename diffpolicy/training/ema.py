"""Exponential moving average of a policy's weights."""

import copy

import torch

from diffpolicy.policy.protocol import Policy


class Ema:
    """average += (1 - decay) * (weights - average), with decay = min(max_decay, 1 - (1 + step)^-power).

    Buffers are copied. The decay warms up as in Diffusion Policy (Chi et al. 2023), but one step earlier: the first
    update copies the weights, there the second one does so, too. It depends only on the step, so there is no counter to
    save.
    """

    def __init__(self, policy: Policy, power: float, max_decay: float) -> None:
        self.policy: Policy = copy.deepcopy(policy).eval()
        for parameter in self.policy.parameters():
            parameter.requires_grad_(False)
        self._power = power
        self._max_decay = max_decay

    def decay(self, step: int) -> float:
        """The decay of the update after optimiser step `step`, counted from 0."""
        return min(self._max_decay, 1.0 - (1.0 + step) ** -self._power)

    def sync(self, policy: Policy) -> None:
        """Copy the tensors that only training needs, which are not averaged."""
        acting = policy.acting_state()
        others = {name: value for name, value in policy.state_dict().items() if name not in acting}
        self.policy.load_state_dict(others, strict=False)

    @torch.no_grad()
    def update(self, policy: Policy, step: int) -> None:
        """Move the average towards the weights after optimiser step `step`."""
        average, weights = list(self.policy.parameters()), list(policy.parameters())
        torch._foreach_lerp_(average, weights, 1.0 - self.decay(step))  # pyright: ignore
        for mine, its in zip(self.policy.buffers(), policy.buffers(), strict=True):
            mine.copy_(its)
