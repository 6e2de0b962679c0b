"""What of a policy is exported, as modules of tensors alone: the encoder, one denoising step, the whole loop.

Shape legend: B batch, T observed steps, H horizon, A action; of encoded actions where a name says encoded.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diffpolicy.diffusion.reverse import Denoised, all_finite, reverse
from diffpolicy.diffusion.samplers.table import Row, StepTable
from diffpolicy.interop.onnx_unet import UNet1dAtTimes
from diffpolicy.networks.backbones.unet1d import UNet1d
from diffpolicy.networks.protocols import Moment
from diffpolicy.policy.clip import clip
from diffpolicy.policy.diffusion import DiffusionPolicy
from diffpolicy.policy.plan_projection import PlanProjection

ROW = ("alpha", "sigma", "time", "input_scale", "a", "b", "s", "raw")


class Box:
    """Keep actions within [low, high], each [A] in physical units; a `Projection`.

    Raises:
        ValueError: low is above high, or a limit is NaN.
    """

    def __init__(self, low: Sequence[float], high: Sequence[float]) -> None:
        self._clip = clip(torch.tensor(low), torch.tensor(high))

    def project(self, plan: Tensor, row: Row, step: int) -> Tensor:
        return self._clip(plan, row, step)


class Encode(nn.Module):
    """Observations [B, T, *shape], one for each key in alphabetical order -> the fields that the network reads."""

    def __init__(self, policy: DiffusionPolicy) -> None:
        super().__init__()
        self.policy, self.keys = policy, sorted(policy.config.observations)

    def forward(self, *observations: Tensor) -> tuple[Tensor, ...]:
        condition = self.policy.condition(dict(zip(self.keys, observations, strict=True)))
        return tuple(condition.fields(self.policy.network.reads))


class Step(nn.Module):
    """One row of any sampler. The row is an input: float64 numbers in the order of `row_of`."""

    def __init__(self, policy: DiffusionPolicy, box: Box | None) -> None:
        super().__init__()
        self.policy, self.projection = policy, _projection(policy, box)

    def forward(self, x: Tensor, noise: Tensor, row: Tensor, *fields: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x and noise [B, H, A] encoded, row [8 or 9] -> the clean estimate after the projection, encoded; the x of the
        next row, without the terms of earlier estimates; and the plan [B, H, A] of the clean estimate, physical units.
        """
        numbers: dict[str, Any] = dict(zip(row_of(self.policy), row.unbind(), strict=True))
        at = Row(**numbers)
        raw = self.policy.objective.denoiser(_as_called(self.policy.network, fields))(x, at).to(x.dtype)
        clean = self.projection.project(raw, at, 0)
        a, b, s, of_raw = (one.to(x.dtype) for one in (at.a, at.b, at.s, at.raw))
        plan = self.projection.finish(Denoised(clean, all_finite([raw])), at, 0)
        return clean, a * x + b * clean + of_raw * raw + s * noise, plan


class Loop(nn.Module):
    """From observations and noise to a plan, through all rows of a sampler."""

    def __init__(self, policy: DiffusionPolicy, sampler: StepTable, box: Box | None) -> None:
        super().__init__()
        self.policy, self.sampler, self.projection = policy, sampler, _projection(policy, box)
        self.encode = Encode(policy)
        known = [Moment(row.time, row.stop) for row in sampler.rows]
        self.known = UNet1dAtTimes(policy.network, known) if type(policy.network) is UNet1d else None

    def forward(self, noise: Tensor, *observations: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """noise [rows + 1, B, H, A] encoded, and observations -> actions [B, n_action_steps, A], plan [B, H, A] in
        physical units, and whether all numbers of a plan are finite [B].
        """
        # The exporter takes the batch of features of images for a constant, but not that of the noise.
        fields = [one.reshape(noise.shape[1], *map(int, one.shape[1:])) for one in self.encode(*observations)]
        network = self._conditioned(fields)
        denoised = reverse(self.policy.objective.denoiser(network), self.sampler, noise, self.projection.project)
        plan = self.projection.finish(denoised, self.sampler.rows[-1], len(self.sampler))
        window = self.policy.config.window
        present = window.n_obs_steps - 1
        return plan[:, present : present + window.n_action_steps], plan, denoised.is_finite

    def _conditioned(self, fields: Sequence[Tensor]) -> Callable[..., Tensor]:
        if self.known is None:
            return _as_called(self.policy.network, fields)
        known, films = self.known, self.known.films(fields[0])
        return lambda x, time, stop=None: known(x, time, stop, films)


def row_of(policy: DiffusionPolicy) -> tuple[str, ...]:
    """The numbers of a row, in the order of the input `row` of `Step`."""
    return (*ROW, "stop") if policy.objective.sees_stop else ROW


def inputs_of(policy: DiffusionPolicy, batch: int) -> dict[str, Tensor]:
    """Observations of random numbers, by key in alphabetical order."""
    made: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(batch)
    for key, spec in sorted(policy.config.observations.items()):
        shape = (batch, policy.config.window.n_obs_steps, *spec.shape)
        if spec.kind == "image":
            made[key] = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
        else:
            normalizer: Any = policy.normalizers.by_key()[key]
            encoded = 2.0 * torch.rand(shape, generator=generator) - 1.0
            made[key] = normalizer.decode(encoded.to(policy.device)).float()
    return {key: value.to(policy.device) for key, value in made.items()}


def _projection(policy: DiffusionPolicy, box: Box | None) -> PlanProjection:
    return PlanProjection(policy.codec, policy.config.window.n_obs_steps - 1, box)


def _as_called(network: Callable[..., Tensor], fields: Sequence[Tensor]) -> Callable[..., Tensor]:
    """The network at a condition, called as it is; the batch stays open, which `plain` of the networks would fix."""

    def at(x: Tensor, time: float | Tensor, stop: float | Tensor | None = None) -> Tensor:
        x = x.to(fields[0].dtype)
        times = [_of_batch(one, x) for one in (time, stop) if one is not None]
        return network(x, times[0], *fields, *times[1:])

    return at


def _of_batch(time: float | Tensor, x: Tensor) -> Tensor:
    number = time.to(torch.float32) if isinstance(time, Tensor) else torch.tensor(time, device=x.device)
    return number.reshape(1).expand(x.shape[0])
