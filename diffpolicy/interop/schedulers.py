"""Schedulers of diffusers in our terms: the schedule and parameterization, and the sampler with the same steps.

squaredcos_cap_v2 is our cosine. A step of DDPM is ours; DDIM keeps the noise estimate of before the clip
(`clipped_epsilon` false), unless use_clipped_model_output is set.
"""

from typing import Any

from diffpolicy.diffusion.objectives.denoising import DenoisingConfig
from diffpolicy.interop.reading import Settings

SCHEDULES = {"squaredcos_cap_v2": "cosine", "linear": "linear", "scaled_linear": "scaled_linear"}
PREDICTIONS = {"epsilon": "epsilon", "sample": "clean", "v_prediction": "v"}
VARIANCES = {"fixed_small": "posterior", "fixed_small_log": "posterior", "fixed_large": "beta"}
SPACINGS = {"leading": "leading", "trailing": "trailing"}
FIXED: dict[str, tuple[Any, str]] = {  # what a setting must be, and why
    "trained_betas": (None, "only schedules with a name are known"),
    "thresholding": (False, "dynamic thresholding moves the estimates; clip_sample is known"),
    "rescale_betas_zero_snr": (False, "its levels differ from those of a named schedule"),
    "set_alpha_to_one": (True, "our last step ends at the clean trajectory"),
    "steps_offset": (0, "our steps start at the first level"),
}


def objective(scheduler: Settings) -> DenoisingConfig:
    """The training objective of a scheduler's settings.

    Raises:
        ValueError: it has a schedule or prediction that ours cannot represent.
    """
    for name, (value, why) in FIXED.items():
        scheduler.require(name, value, why)
    schedule: dict[str, Any] = {"name": _known(scheduler, "beta_schedule", SCHEDULES, "linear")}
    if schedule["name"] != "cosine":
        schedule["beta_start"] = scheduler.get("beta_start", float, 1e-4)
        schedule["beta_end"] = scheduler.get("beta_end", float, 0.02)
    return DenoisingConfig(
        schedule=schedule,
        num_levels=scheduler.get("num_train_timesteps", int, 1000),
        parameterization=_known(scheduler, "prediction_type", PREDICTIONS, "epsilon"),
    )


def clips(scheduler: Settings) -> bool:
    """Whether clean estimates are clipped to [-1, 1] at every step; raises ValueError if to another range."""
    if not scheduler.get("clip_sample", bool, True):
        return False
    scheduler.require(
        "clip_sample_range", 1.0, "ours clips to the limits of the data, which are encoded as -1 and 1", 1.0
    )
    return True


def sampler(
    scheduler: Settings, kind: str, steps: int, eta: float = 0.0, clipped_epsilon: bool = False
) -> dict[str, Any]:
    """The settings of our sampler that takes the same steps.

    Args:
        kind: DDPM or DDIM.
        steps: of inference.
        eta, clipped_epsilon: what DDIM's steps are given.

    Raises:
        ValueError: it is another scheduler, or has steps that ours cannot represent.
    """
    spacing = _known(scheduler, "timestep_spacing", SPACINGS, "leading")
    if kind == "DDPM":
        variance = _known(scheduler, "variance_type", VARIANCES, "fixed_small")
        return {"name": "ddpm", "steps": steps, "spacing": spacing, "start": 1.0, "variance": variance}
    if kind == "DDIM":
        own = {"eta": eta, "clipped_epsilon": clipped_epsilon}
        return {"name": "ddim", "steps": steps, "spacing": spacing, "start": 1.0, **own}
    raise ValueError(f"{scheduler.where}: the scheduler {kind} is not imported; DDPM and DDIM are")


def _known(scheduler: Settings, name: str, table: dict[str, str], default: str) -> str:
    found = scheduler.get(name, str, default)
    if found not in table:
        raise ValueError(f"{scheduler.where}: {name} {found!r} is not imported; {', '.join(table)} are")
    return table[found]


def of_objective(own: DenoisingConfig) -> dict[str, Any]:
    """The settings of a scheduler for our objective, the reverse of `objective`.

    Raises:
        ValueError: its schedule or parameterization is none of diffusers' that ours knows.
    """
    schedules, predictions = ({ours: theirs for theirs, ours in one.items()} for one in (SCHEDULES, PREDICTIONS))
    schedule, prediction = own.schedule.name, own.parameterization.name
    if own.zero_terminal_snr or schedule not in schedules or prediction not in predictions:
        raise ValueError(
            f"the schedule {schedule}{' with zero_terminal_snr' * own.zero_terminal_snr} and the parameterization "
            f"{prediction} are not exported; {', '.join(schedules)} and {', '.join(predictions)} are"
        )
    return {
        "num_train_timesteps": own.num_levels,
        "beta_schedule": schedules[schedule],
        "beta_start": getattr(own.schedule, "beta_start", 1e-4),
        "beta_end": getattr(own.schedule, "beta_end", 0.02),
        "prediction_type": predictions[prediction],
    }
