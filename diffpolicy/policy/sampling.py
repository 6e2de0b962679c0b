"""Sampling: runs the reverse loop from noise to the last clean estimate, call by call or as a replayed recording.

Shape legend: B batch, H horizon, A action.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diffpolicy.codecs.codec import Codec
from diffpolicy.diffusion.objectives.objective import Objective
from diffpolicy.diffusion.reverse import Denoise, Denoised, reverse, warm_noise
from diffpolicy.diffusion.samplers.table import StepTable
from diffpolicy.policy.plan_projection import PlanProjection
from diffpolicy.policy.precision import like_parameters
from diffpolicy.policy.sampler_choices import Given, Sampler, build_sampler, warm_sampler
from diffpolicy.policy.settings import PolicyConfig
from diffpolicy.system.replay import Replays

Denoiser = Callable[[Mapping[str, Tensor]], Denoise]
"""Observations {key: [B, n_obs_steps, *shape]} -> the denoiser conditioned on them."""


@dataclass(frozen=True)
class ActionChunk:
    """The output of a policy, in physical units.

    Attributes:
        actions: the actions to execute, [B, n_action_steps, A].
        plan: the whole horizon, [B, H, A]; index n_obs_steps - 1 is the present.
    """

    actions: Tensor
    plan: Tensor


@dataclass(frozen=True)
class Sampling:
    """How a policy draws chunks.

    Attributes:
        sampler: draws them; its length is the number of network evaluations.
        guide: steers them; None for no guidance.
        settings: a dataclass from which both were built, with `name` and `steps`.
        warm: the sampler for robots whose last plan is known; None if every plan is drawn from noise.
    """

    sampler: Any
    guide: Any
    settings: Any
    warm: Any = None


def sampling_of(objective: Objective, settings: Any, guide: Any, given: Given) -> Sampling:
    """How a policy with this objective draws chunks with these settings of a sampler.

    Raises:
        ValueError: they do not fit the schedule or what the network is trained for.
    """
    objective.check_sampler(settings)
    schedule = objective.schedule

    def finished(sampler: Any) -> Any:
        if not (objective.sees_stop and isinstance(sampler, StepTable)):
            return sampler
        return sampler.with_stops(float(schedule.levels.time[0]))

    warm = warm_sampler(schedule, settings, given)
    return Sampling(finished(build_sampler(schedule, settings, given=given)), guide, settings, finished(warm))


def drawn_noise(
    generators: Sequence[torch.Generator],
    sampler: Sampler,
    codec: Codec,
    config: PolicyConfig,
    like: nn.Module,
    previous: Tensor | None = None,
) -> Tensor:
    """The draws of a sampler [rows + 1, B, *encoded_shape], such that it starts from `previous` [B, H, A] if given.

    Args:
        like: has the parameters whose device and precision the draws get.

    Raises:
        ValueError: `previous` has another shape or is not finite, or the sampler cannot start from it.
    """
    shape = (len(sampler) + 1, *codec.encoded_shape(config.window.horizon))
    noise = torch.stack([torch.randn(shape, generator=each) for each in generators], dim=1)
    noise = like_parameters(noise, like)
    if previous is None:
        return noise
    expected = [len(generators), config.window.horizon, config.action_dim]
    if list(previous.shape) != expected or not bool(previous.isfinite().all()):
        raise ValueError(f"policy: previous has shape {list(previous.shape)}, expected finite values of {expected}")
    if not isinstance(sampler, StepTable):
        raise ValueError(f"policy: a {type(sampler).__name__} cannot start from a previous plan; use one of our tables")
    return warm_noise(noise, sampler, codec.encode(like_parameters(previous, like)))


def drawn(
    replays: Replays | None,
    policy: nn.Module,
    denoiser: Denoiser,
    observation: Mapping[str, Tensor],
    sampler: Sampler,
    noise: Tensor,
    projection: PlanProjection,
) -> Denoised:
    """`replayed` if there are `replays` and this loop can be recorded, else `sampled`."""
    if replays and isinstance(sampler, StepTable) and projection.is_replayable:
        return replayed(replays, policy, denoiser, observation, sampler, noise, projection)
    return sampled(denoiser(observation), sampler, noise, projection)


def sampled(denoise: Denoise, sampler: Sampler, noise: Tensor, projection: PlanProjection) -> Denoised:
    """Run the reverse loop from noise [rows + 1, B, *encoded_shape]; returns the last projected estimate."""
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
    """Like `sampled`, but replays a recording of the whole loop, including the projection at its steps.

    Args:
        denoiser: a function of only the observation and the tensors of `policy`; the same one at every call.
    """
    keys = sorted(observation)

    def loop(tensors: Sequence[Tensor]) -> list[Tensor]:
        noise, *others = tensors
        seen, read = dict(zip(keys, others, strict=False)), others[len(keys) :]
        twin = projection.twin(read)
        denoised = sampled(denoiser(seen), sampler, noise, twin)
        return [denoised.clean, denoised.is_finite, *twin.left()]

    inputs = [noise, *(observation[key] for key in keys), *projection.tensors()]
    clean, is_finite, *left = replays.run(
        policy, (sampler.rows, sampler.start, sampler.correlation, projection.key()), loop, inputs
    )
    projection.take(left)
    return Denoised(clean, is_finite)
