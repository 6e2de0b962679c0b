"""Spacings: how many levels, where they begin and end, and in what they are even."""

import numpy as np
import pytest
from diffusers import DDIMScheduler, EDMEulerScheduler
from every import EVERY_SCHEDULE
from one_case import over

from diffpolicy.diffusion import schedules
from diffpolicy.diffusion.schedule import Schedule
from diffpolicy.diffusion.spacing import SPACINGS, karras, leading, log_snr, trailing

STEPS = [1, 2, 3, 7, 10, 33, 99, 100]
INTERPOLATED = ("log_snr", "karras", "noise_then_karras")  # undefined where lambda is minus infinity


@over("schedule", EVERY_SCHEDULE)
@pytest.mark.parametrize("name", SPACINGS)
@over("steps", [1, 2, 7, 1000])
def test_levels_fall_from_the_last_trained_level_or_are_refused(schedule: Schedule, name: str, steps: int) -> None:
    if name in INTERPOLATED and schedule.levels.alpha[-1] == 0.0:
        with pytest.raises(ValueError, match=rf"spacing {name} is undefined .* holds no signal .* use trailing"):
            SPACINGS[name](schedule, steps)
        return
    now = SPACINGS[name](schedule, steps)
    assert len(now) == steps
    assert (np.diff(now.time) < 0).all()
    assert (np.diff(now.sigma) < 0).all()
    if name == "leading":
        assert now.sigma[-1] == schedule.levels.sigma[0]
    else:
        np.testing.assert_allclose(now.sigma[0], schedule.levels.sigma[-1], rtol=1e-10)


@over("name", list(SPACINGS))
@over("steps", [0, -1, 101])
def test_steps_outside_the_trained_levels_are_refused(name: str, steps: int) -> None:
    with pytest.raises(ValueError, match=f"steps {steps} must be between 1 and 100"):
        SPACINGS[name](schedules.cosine(100), steps)


@over("steps", STEPS)
def test_trailing_is_even_up_to_rounding_to_a_trained_level(steps: int) -> None:
    time = trailing(schedules.cosine(100), steps).time
    assert time[0] == 99
    assert np.ptp(np.diff([*time, -1.0])) <= 1


@over("steps", STEPS)
def test_leading_is_even_from_the_first_level_up(steps: int) -> None:
    time = leading(schedules.cosine(100), steps).time
    np.testing.assert_array_equal(time[::-1], np.arange(steps) * (100 // steps))


@pytest.mark.parametrize("name", ["trailing", "leading"])
@over("steps", [1, 2, 5, 10, 20, 50, 100])
def test_spacings_of_trained_levels_equal_diffusers(name: str, steps: int) -> None:
    """Where the steps divide the levels; elsewhere their trailing may take one step more than asked for."""
    scheduler = DDIMScheduler(100, timestep_spacing=name, steps_offset=0)
    scheduler.set_timesteps(steps)
    np.testing.assert_array_equal(SPACINGS[name](schedules.cosine(100), steps).time, scheduler.timesteps.numpy())


@over("steps", STEPS[1:])
@pytest.mark.parametrize("schedule_name", ["cosine", "karras"])
def test_log_snr_and_karras_are_even_in_what_they_claim(schedule_name: str, steps: int) -> None:
    schedule = schedules.cosine(100) if schedule_name == "cosine" else schedules.karras(100, 0.002, 80.0, 0.5)
    for spacing, measure in (
        (log_snr, lambda levels: np.log(levels.snr)),
        (karras, lambda levels: (levels.sigma / levels.alpha) ** (1 / 7)),
    ):
        values = measure(spacing(schedule, steps))
        np.testing.assert_allclose(values[[0, -1]], measure(schedule.levels)[[-1, 0]], rtol=1e-10)
        np.testing.assert_allclose(np.diff(values), (values[-1] - values[0]) / (steps - 1), rtol=1e-8)


@over("steps", STEPS)
def test_karras_equals_edms_levels(steps: int) -> None:
    scheduler = EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0)
    scheduler.set_timesteps(steps)
    ours = karras(schedules.karras(1000, 0.002, 80.0, 0.5), steps)
    np.testing.assert_allclose(ours.sigma, scheduler.sigmas[:-1].numpy(), rtol=1e-5)  # theirs are float32
    # ours is interpolated between 1000 levels, 2.6 apart on average
    np.testing.assert_allclose(ours.time, 1000 * scheduler.timesteps.numpy(), atol=0.02)
