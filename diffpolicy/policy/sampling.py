"""From noise to the last clean estimate of a batch, call by call or replayed.

Shape legend: B batch, H horizon, A action.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from diffpolicy.diffusion.reverse import Denoise, Denoised, reverse
from diffpolicy.diffusion.samplers.table import StepTable
from diffpolicy.policy.build import Sampler
from diffpolicy.policy.plan_projection import PlanProjection
from diffpolicy.system.replay import Replays

Denoiser = Callable[[Mapping[str, Tensor]], Denoise]
"""Observations {key: [B, n_obs_steps, dim]} -> the clean estimate that they lead to."""


@dataclass(frozen=True)
class ActionChunk:
    """What the policy proposes, in physical units.

    Attributes:
        actions: to be executed, [B, n_action_steps, A].
        plan: the whole horizon [B, H, A]; its index n_obs_steps - 1 is the present.
    """

    actions: Tensor
    plan: Tensor


def sampled(denoise: Denoise, sampler: Sampler, noise: Tensor, projection: PlanProjection) -> Denoised:
    """The last projected clean estimate [B, H, A], from noise [rows + 1, B, H, A]."""
    if isinstance(sampler, StepTable):
        return reverse(denoise, sampler, noise, projection.project)
    return sampler.sample(denoise, noise, projection.project)


def replayed(
    replays: Replays,
    policy: nn.Module,
    denoiser: Denoiser,
    observation: Mapping[str, Tensor],
    sampler: StepTable,
    noise: Tensor,
    projection: PlanProjection,
) -> Denoised:
    """The same from a recording of the whole loop, the projection at its steps included.

    Args:
        denoiser: a function of the observation and of the tensors of `policy`, always the same one.
    """
    keys = sorted(observation)

    def loop(tensors: Sequence[Tensor]) -> list[Tensor]:
        noise, *others = tensors
        seen, read = dict(zip(keys, others, strict=False)), others[len(keys) :]
        twin = projection.twin(read)
        denoised = sampled(denoiser(seen), sampler, noise, twin)
        return [denoised.clean, denoised.is_finite, *twin.left()]

    inputs = [noise, *(observation[key] for key in keys), *projection.tensors()]
    clean, is_finite, *left = replays.run(policy, (sampler.rows, projection.key()), loop, inputs)
    projection.take(left)
    return Denoised(clean, is_finite)
