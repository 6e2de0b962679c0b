# pyright: basic
# diffusers is optional and has no type stubs.
"""An adapter that runs a scheduler from diffusers as a sampler, with the projection at each of its steps.

The projected clean estimate is converted to the noise estimate that the scheduler expects. The result is the last
projected estimate. This is slower than a step table and cannot be exported.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from diffpolicy.diffusion.reverse import Denoise, Denoised, Project, all_finite
from diffpolicy.diffusion.samplers.settings import GuidanceConfig
from diffpolicy.diffusion.samplers.table import rows_at
from diffpolicy.diffusion.schedule import VARIANCE_PRESERVING, FloatArray, Schedule, check_steps
from diffpolicy.system.schema import Range

_LEVELS = "the levels are those of the policy's schedule"
_FLOW = "the levels are not those of flow matching; on the schedule flow use flow_euler, flow_heun or dpmpp_2m"
_CLIP = "the policy clips the estimates itself"
_FIXED: Mapping[str, tuple[Any, str]] = {  # what an option must be, and why
    "prediction_type": ("epsilon", "the adapter converts the network's output to a noise estimate, whatever it is"),
    "snr_shift_scale": (1.0, _LEVELS),
    "rescale_betas_zero_snr": (False, _LEVELS),
    "use_flow_sigmas": (False, _FLOW),
    "use_dynamic_shifting": (False, _FLOW),
    "clip_sample": (False, _CLIP),
    "thresholding": (False, f"{_CLIP}; sampler.guidance.threshold is dynamic thresholding"),
}
_WITHOUT_EFFECT = ("beta_start", "beta_end", "beta_schedule", "trained_betas", "num_train_timesteps")


@dataclass
class DiffusersConfig:
    """Settings of `DiffusersSampler`: the name of a scheduler class and its options, e.g. {use_karras_sigmas: true}."""

    name: str = "diffusers"
    steps: Annotated[int, Range(1, 10_000)] = 10
    scheduler: str = "UniPCMultistepScheduler"
    scheduler_options: Any = None
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)


class DiffusersSampler:
    """Sampler that wraps a scheduler from diffusers.

    The scheduler is tried once, so that one that cannot step is refused here.

    Args:
        scheduler: name of the scheduler class.
        options: arguments of the scheduler class.
        schedule: a variance-preserving schedule with signal at every level.
        steps: inference steps of the scheduler.

    Raises:
        ImportError: diffusers is not installed, or the scheduler needs another package that is not.
        ValueError: the scheduler is unknown or does not take betas and a noise estimate; an option is unknown or
            contradicts the adapter; the schedule or the number of steps is unsuitable.
    """

    def __init__(self, scheduler: str, options: Mapping[str, Any], schedule: Schedule, steps: int) -> None:
        if schedule.family != VARIANCE_PRESERVING or schedule.levels.alpha[-1] == 0.0:
            raise ValueError(
                "sampler: diffusers' schedulers are given betas, which only a variance-preserving schedule with "
                "signal at every level has; use one of our own samplers"
            )
        check_steps(steps, len(schedule))
        self.steps, self._class = steps, _scheduler_class(scheduler)
        self._options = {**_checked(self._class, options), **_levels_as_betas(schedule)}
        self.rows = rows_at(schedule.at(self._tried(schedule)))

    def __len__(self) -> int:
        return len(self.rows)

    def sample(self, denoise: Denoise, noise: Tensor, project: Project) -> Denoised:
        """Like `reverse`, for noise [rows + 1, batch, horizon, action].

        The first draw is the start; a stochastic scheduler uses the others.
        """
        scheduler = self._started(noise.device)
        draws = _draws(scheduler, noise)
        clean = x = noise[0] * scheduler.init_noise_sigma
        estimates: list[Tensor] = []
        for step, (row, time) in enumerate(zip(self.rows, scheduler.timesteps, strict=True)):
            scaled = scheduler.scale_model_input(x, time)
            estimates.append(denoise(scaled, row))
            clean = project(estimates[-1], row, step)
            epsilon = (scaled - row.alpha * clean) / row.sigma
            x = scheduler.step(epsilon, time, x, **draws[step]).prev_sample
        return Denoised(clean, all_finite(estimates))

    def _started(self, device: torch.device | str = "cpu") -> Any:
        scheduler = self._class(**self._options)
        scheduler.set_timesteps(self.steps, device=device)
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)  # or it looks for its place by timesteps, which are rounded and may repeat
        return scheduler

    def _tried(self, schedule: Schedule) -> FloatArray:
        """Run the scheduler once, without a network; returns log(alpha / sigma) of the levels that it visits [rows]."""
        name = self._class.__name__
        try:
            with torch.random.fork_rng(devices=[]):
                before = torch.get_rng_state()
                lambdas, x = self._run(schedule)
                draws_by_itself = not torch.equal(before, torch.get_rng_state())
        except (TypeError, AttributeError, AssertionError, IndexError, ValueError, RuntimeError) as error:
            reason = f"{type(error).__name__} {error}".strip()
            raise ValueError(f"sampler: {name} cannot make {self.steps} steps with these options: {reason}") from error
        if draws_by_itself:
            raise ValueError(f"sampler: {name} draws noise of its own, which no seed of an episode reaches")
        if not bool(x.isfinite().all()):
            raise ValueError(
                f"sampler: {name} gives NaN at {self.steps} steps, because levels repeat; use fewer steps, or "
                "another spacing: 'sampler.scheduler_options={timestep_spacing: trailing}'"
            )
        return lambdas

    def _run(self, schedule: Schedule) -> tuple[FloatArray, Tensor]:
        """The levels of a run and its last x, with 0 as the clean estimate."""
        scheduler, trained = self._started(), schedule.levels.lambdas
        for name in ("sigmas", "sigmas_interpol"):
            if hasattr(scheduler, name):
                setattr(scheduler, name, getattr(scheduler, name).double())
        noise = torch.ones(len(scheduler.timesteps) + 1, 1, 1, 1, dtype=torch.float64)
        draws, lambdas, x = _draws(scheduler, noise), [], noise[0] * scheduler.init_noise_sigma
        for step, time in enumerate(scheduler.timesteps):
            scaled = scheduler.scale_model_input(x, time)
            gain = float(scheduler.scale_model_input(torch.ones_like(x), time))
            if gain != 1.0:  # it walks in x / alpha, and scales to x
                lambdas.append(-0.5 * np.log(1.0 / gain**2 - 1.0))
            elif hasattr(scheduler, "sigmas"):  # sigma / alpha; timesteps may be rounded
                lambdas.append(-np.log(float(scheduler.sigmas[step])))
            else:
                lambdas.append(np.interp(float(time), np.arange(len(schedule)), trained))
            sigma = 1.0 / np.sqrt(1.0 + np.exp(2.0 * lambdas[-1]))
            x = scheduler.step(scaled / sigma, time, x, **draws[step]).prev_sample
        found = np.array(lambdas)
        tolerance = 1e-2  # alpha_bar is float32 there: 1 - alpha_bar has few digits
        if not ((found > trained[-1] - tolerance) & (found < trained[0] + tolerance)).all():
            raise ValueError(f"its levels reach beyond the trained ones, to log(alpha / sigma) {found.min():.3g}")
        return np.clip(found, trained[-1], trained[0]), x


def _checked(scheduler_class: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options, with those that the adapter fixes.

    Raises:
        ValueError: an option is unknown or contradicts the adapter, or the class takes no betas or noise estimate.
    """
    name, known = scheduler_class.__name__, inspect.signature(scheduler_class).parameters
    if missing := [one for one in ("trained_betas", "prediction_type") if one not in known]:
        raise ValueError(f"sampler: {name} takes no betas or no noise estimate: it has no option {missing[0]}")
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(f"sampler: {name} has no option {unknown[0]!r}; it has {', '.join(sorted(known))}")
    for option, value in options.items():
        fixed, reason = _FIXED.get(option, (value, ""))
        if option in _WITHOUT_EFFECT or value != fixed:
            raise ValueError(f"sampler: scheduler_options {option}={value!r}: {reason or _LEVELS}; leave it out")
    if str(options.get("variance_type")).startswith("learned"):
        raise ValueError("sampler: scheduler_options variance_type: the network predicts no variance; leave it out")
    return {**{option: value for option, (value, _) in _FIXED.items() if option in known}, **options}


def _levels_as_betas(schedule: Schedule) -> dict[str, Any]:
    alpha_bar = schedule.levels.alpha**2
    betas = 1.0 - alpha_bar / np.append(1.0, alpha_bar[:-1])
    return {"num_train_timesteps": len(betas), "trained_betas": betas.tolist()}


def _draws(scheduler: Any, noise: Tensor) -> Sequence[dict[str, Any]]:
    """The arguments of each `step` by which a stochastic scheduler gets its noise.

    Some take the noise itself. Others take generators: one per row of the batch, seeded by a draw of that row, so that
    its plan does not depend on the others.
    """
    known = inspect.signature(scheduler.step).parameters
    if "variance_noise" in known:
        return [{"variance_noise": one} for one in noise[1:]]
    if "generator" not in known:
        return [{}] * (len(noise) - 1)
    seeds = noise[-1].flatten(1)[:, :2].double().cpu().contiguous().view(torch.int64)
    generators = [torch.Generator().manual_seed(hash(tuple(bits))) for bits in seeds.tolist()]
    return [{"generator": generators}] * (len(noise) - 1)


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
