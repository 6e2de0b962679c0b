"""The methods that the safety benchmark compares: no safety, ours in part and in full, and rivals from the literature.

Each rival has its own loop.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from diffpolicy.constraints.planar.keep_out import KeepOut
from diffpolicy.constraints.planar.obstacles import no_obstacles
from diffpolicy.constraints.planar.separation import separation
from diffpolicy.control.controller import PolicyController
from diffpolicy.control.wrapper import ControllerWrapper
from diffpolicy.diffusion.guidance import by_cost
from diffpolicy.diffusion.reverse import Denoise, Denoised, Project, all_finite
from diffpolicy.diffusion.samplers.table import Row, StepTable
from diffpolicy.policy.diffusion import DiffusionPolicy
from diffpolicy.policy.sampler_choices import Sampler
from diffpolicy.safety.settings import Safety
from diffpolicy.safety.surroundings import Surroundings
from diffpolicy.system.tables import Choice

GUIDANCE_SCALES = (1.0, 3.0, 10.0, 30.0)
BARRIER_RATES = (0.2, 0.5, 0.9)  # share of the clearance that a reverse step may use up


@dataclass(frozen=True)
class NoisySteps:
    """Projects the noisy x of every step instead of the clean estimate, as SafeDiffuser (Xiao et al. 2023) does."""

    table: StepTable

    @property
    def rows(self) -> tuple[Row, ...]:
        return self.table.rows

    def __len__(self) -> int:
        return len(self.table)

    def sample(self, denoise: Denoise, noise: Tensor, project: Project) -> Denoised:
        """From noise [rows + 1, B, H, A] to a clean trajectory. Only for tables without earlier estimates."""
        x = self.rows[0].sigma * noise[0]
        estimates: list[Tensor] = []
        for step, row in enumerate(self.rows):
            estimates.append(denoise(x, row))
            x = row.a * x + row.b * estimates[-1].clamp(-1.0, 1.0) + row.s * noise[step + 1]
            x = x + project(x, row, step) - x.clamp(-1.0, 1.0)  # only the shift: `project` clips to the data first
        return Denoised(x, all_finite(estimates))


class PerWaypoint:
    """What the rivals see of the scene, waypoint by waypoint: commands instead of motion, points instead of segments.

    `rate` is the share of the clearance that the barrier lets a reverse step use up.
    """

    def __init__(self, policy: DiffusionPolicy, keep_out: KeepOut, rate: float = 1.0) -> None:
        self._codec, self._distance, self._rate = policy.codec, keep_out.distance, rate
        self.obstacles = no_obstacles(0)
        self._before: Tensor | None = None

    def clearance(self, plan: Tensor) -> tuple[Tensor, Tensor]:
        """The clearance h [B, H, M] of every waypoint, positive where allowed, and its gradient [B, H, M, 2]."""
        obstacles = self.obstacles
        points = plan[:, :, None, None].expand(-1, -1, obstacles.slots, 2, -1)
        distance, normal = separation(points, obstacles.vertices.to(plan)[:, None])
        h = distance - obstacles.radius.to(plan)[:, None] - self._distance
        return torch.where(obstacles.is_used[:, None], h, torch.inf), normal

    def cost(self, clean: Tensor) -> Tensor:
        """The squared depth [B] of every waypoint of normalised plans, in (10 px)^2."""
        h, _ = self.clearance(self._codec.decode(clean))
        return (-h / 10.0).clamp(min=0.0).square().sum((1, 2))

    def barrier(self, plan: Tensor, row: Row) -> Tensor:
        """The nearest plan in which each waypoint loses at most a share of its clearance from step to step."""
        if self._before is None or self._before.shape != plan.shape:
            self._before = plan
        h, normal = self.clearance(self._before)
        nearest = h.argmin(-1, keepdim=True)
        h_nearest = torch.gather(h, -1, nearest)
        n = torch.gather(normal, -2, nearest[..., None].expand(*nearest.shape, 2)).squeeze(-2)
        moved = ((plan - self._before) * n).sum(-1, keepdim=True)
        short = (-self._rate * h_nearest - moved).clamp(min=0.0)
        self._before = plan + torch.where(short.isfinite(), short, 0.0) * n
        return self._before.clone()

    def forget(self) -> None:
        """Start a new chunk."""
        self._before = None


class Rival(ControllerWrapper):
    """A controller whose own method sees the obstacles. It has neither a certificate nor a fallback."""

    def __init__(self, controller: PolicyController, eyes: PerWaypoint, safety: Safety) -> None:
        super().__init__(controller)
        self._eyes, self._safety = eyes, safety

    @property
    def safety(self) -> Safety:
        """The constraints. Nothing enforces them here, but without them `rollout` would not pass the surroundings."""
        return self._safety

    def select_action(
        self, observation: Mapping[str, npt.ArrayLike], surroundings: Surroundings | None = None
    ) -> npt.NDArray[np.float32]:
        """The action of the controller. All robots must be planned for together, one row each."""
        seen = surroundings.obstacles if surroundings is not None else None
        self._eyes.obstacles = no_obstacles(len(np.asarray(next(iter(observation.values()))))) if seen is None else seen
        self._eyes.forget()
        return super().select_action(observation)


Make = Callable[[DiffusionPolicy, Choice, Safety, int], Any]


def _ours(**changes: Any) -> Make:
    def make(policy: DiffusionPolicy, sampler: Choice, safety: Safety, batch: int) -> PolicyController:
        return PolicyController(
            policy, policy.sampler(sampler), safety=replace(safety, **changes), inference_batch=batch
        )

    return make


def _noisy(policy: DiffusionPolicy, sampler: Choice, safety: Safety, batch: int) -> PolicyController:
    safety = replace(safety, mode="every_step", certify=False)
    return PolicyController(policy, _noisy_steps(policy, sampler), safety=safety, inference_batch=batch)


def _barrier(rate: float) -> Make:
    def make(policy: DiffusionPolicy, sampler: Choice, safety: Safety, batch: int) -> Rival:
        eyes = PerWaypoint(policy, _keep_out(safety), rate)
        steps = _noisy_steps(policy, sampler)
        return Rival(PolicyController(policy, steps, inference_batch=batch, constrain=eyes.barrier), eyes, safety)

    return make


def _guidance(scale: float) -> Make:
    def make(policy: DiffusionPolicy, sampler: Choice, safety: Safety, batch: int) -> Rival:
        eyes = PerWaypoint(policy, _keep_out(safety))
        guide = by_cost(eyes.cost, scale)
        table = policy.sampler(sampler)
        return Rival(PolicyController(policy, table, inference_batch=batch, guide=guide), eyes, safety)

    return make


def _noisy_steps(policy: DiffusionPolicy, sampler: Choice) -> Sampler:
    table = policy.sampler(sampler)
    if not isinstance(table, StepTable) or table.c is not None:
        raise ValueError(f"methods: noisy steps need a sampler with one estimate per row, not {type(table).__name__}")
    return NoisySteps(table)  # pyright: ignore[reportReturnType]


def _keep_out(safety: Safety) -> KeepOut:
    return next(constraint for constraint in safety.constraints if isinstance(constraint, KeepOut))


TUNING: Mapping[str, Make] = {
    **{f"guidance_{scale:g}": _guidance(scale) for scale in GUIDANCE_SCALES},
    **{f"barrier_{rate:g}": _barrier(rate) for rate in BARRIER_RATES},
}
"""Run only when named. Guidance and barrier are chosen from these by safe success on seeds from 60000 on."""

METHODS: Mapping[str, Make] = {
    "none": _ours(mode="none", certify=False),
    "clip": _ours(mode="clip", certify=False),
    "guidance": TUNING["guidance_3"],
    "noisy_steps": _noisy,
    "barrier": TUNING["barrier_0.9"],
    "last": _ours(mode="last", certify=False),
    "last_half": _ours(mode="last_half", certify=False),
    "every_step": _ours(mode="every_step", certify=False),
    "brake": _ours(mode="none"),
    **{f"ours_{k}": _ours(mode="last_half", candidates=k) for k in (1, 4, 8, 16)},
    **TUNING,
}
COMPARED = tuple(name for name in METHODS if name not in TUNING)
