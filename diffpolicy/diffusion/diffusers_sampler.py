# pyright: basic
# diffusers is optional and has no type stubs.
"""An adapter that runs a scheduler from diffusers as a sampler, with the projection at each of its steps.

The projected clean estimate is converted to the noise estimate that the scheduler expects. The result is the last
projected estimate. This is slower than a step table and cannot be exported.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffpolicy.diffusion.reverse import Denoise, Denoised, Project, all_finite
from diffpolicy.diffusion.samplers.settings import GuidanceConfig
from diffpolicy.diffusion.samplers.table import rows_at
from diffpolicy.diffusion.schedule import VARIANCE_PRESERVING, FloatArray, Schedule, check_steps


@dataclass
class DiffusersConfig:
    """Settings of `DiffusersSampler`: the name of a scheduler class and its options, e.g. {use_karras_sigmas: true}."""

    name: str = "diffusers"
    steps: int = 10
    scheduler: str = "UniPCMultistepScheduler"
    scheduler_options: Any = None
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)


class DiffusersSampler:
    """Sampler that wraps a scheduler from diffusers.

    Args:
        scheduler: name of the scheduler class.
        options: arguments of the scheduler class.
        schedule: a variance-preserving schedule with signal at every level.
        steps: inference steps of the scheduler.

    Raises:
        ImportError: diffusers is not installed.
        ValueError: the scheduler is unknown or does not take betas and a noise estimate, or the schedule or the number
            of steps is unsuitable.
    """

    def __init__(self, scheduler: str, options: Mapping[str, Any], schedule: Schedule, steps: int) -> None:
        if schedule.family != VARIANCE_PRESERVING or schedule.levels.alpha[-1] == 0.0:
            raise ValueError(
                "sampler: diffusers' schedulers are given betas, which only a variance-preserving schedule with "
                "signal at every level has; use one of our own samplers"
            )
        check_steps(steps, len(schedule))
        self.steps = steps
        alpha_bar = schedule.levels.alpha**2
        betas = 1.0 - alpha_bar / np.append(1.0, alpha_bar[:-1])
        settings = {"num_train_timesteps": len(betas), "trained_betas": betas.tolist(), "prediction_type": "epsilon"}
        self._make = lambda: _scheduler_class(scheduler)(**{**settings, **options})
        self.rows = rows_at(schedule.at(_lambdas(self._started(), schedule)))

    def __len__(self) -> int:
        return len(self.rows)

    def sample(self, denoise: Denoise, noise: Tensor, project: Project) -> Denoised:
        """Like `reverse`, for noise [rows + 1, batch, horizon, action].

        The first draw is the start. The last one only seeds the scheduler, which draws its own fresh noise.
        """
        scheduler = self._started(noise.device)
        if hasattr(scheduler, "config") and "clip_sample" in scheduler.config:
            scheduler.register_to_config(clip_sample=False)  # we project instead
        seeds = 1e6 * noise[-1].double().cpu().flatten(1).abs().sum(1)
        generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]  # one per row of the batch
        draws = {"generator": generators} if "generator" in inspect.signature(scheduler.step).parameters else {}
        clean = x = noise[0] * scheduler.init_noise_sigma
        estimates: list[Tensor] = []
        for step, (row, time) in enumerate(zip(self.rows, scheduler.timesteps, strict=True)):
            scaled = scheduler.scale_model_input(x, time)
            estimates.append(denoise(scaled, row))
            clean = project(estimates[-1], row, step)
            epsilon = (scaled - row.alpha * clean) / row.sigma
            x = scheduler.step(epsilon, time, x, **draws).prev_sample
        return Denoised(clean, all_finite(estimates))

    def _started(self, device: torch.device | str = "cpu") -> Any:
        try:
            scheduler = self._make()
            scheduler.set_timesteps(self.steps, device=device)
        except (TypeError, AttributeError, NotImplementedError) as error:
            raise ValueError(
                f"sampler: this scheduler takes no betas, no noise estimate or other options: {error}"
            ) from error
        return scheduler


def _lambdas(scheduler: Any, schedule: Schedule) -> FloatArray:
    """log(alpha / sigma) [rows] of the levels that a started scheduler visits; some lie between trained levels."""
    trained = schedule.levels.lambdas
    times = scheduler.timesteps.double().numpy()
    sigmas = np.asarray(getattr(scheduler, "sigmas", ()), dtype=np.float64)
    if len(sigmas) == len(times) + 1:  # sigma / alpha of each row and of the end; timesteps may be rounded
        return np.clip(-np.log(sigmas[:-1]), trained[-1], trained[0])
    return np.interp(times, np.arange(len(schedule)), trained)


def _scheduler_class(name: str) -> Any:
    try:
        import diffusers
    except ImportError as error:
        raise ImportError("sampler: diffusers is not installed: pip install diffusers") from error
    known = [one for one in dir(diffusers) if one.endswith("Scheduler") and not one.startswith("Flax")]
    known = [one for one in known if "FlowMatch" not in one and "Inverse" not in one]
    if name not in known:
        raise ValueError(f"sampler: scheduler {name!r} is unknown, expected one of {', '.join(known)}")
    return getattr(diffusers, name)
