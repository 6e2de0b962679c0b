"""Schedules: equal to the published ones, refused where sampling could not start from noise."""

import numpy as np
import pytest
from diffusers import DDPMScheduler

from diffpolicy.diffusion.schedule import cosine, linear


@pytest.mark.parametrize("levels", [10, 50, 100, 1000])
def test_cosine_is_squaredcos_cap_v2(levels: int) -> None:
    reference = DDPMScheduler(num_train_timesteps=levels, beta_schedule="squaredcos_cap_v2").alphas_cumprod
    alpha = cosine(levels).levels.alpha
    # the reference multiplies in float32: 1e-7 per factor, relative, over up to 1000 factors
    np.testing.assert_allclose(alpha**2, reference.numpy(), rtol=2e-4 if levels == 1000 else 2e-5, atol=1e-9)


def test_linear_is_the_ddpm_schedule() -> None:
    reference = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear").alphas_cumprod
    np.testing.assert_allclose(linear(1000).levels.alpha ** 2, reference.numpy(), rtol=2e-4)


@pytest.mark.parametrize("schedule", [cosine(100), linear(1000)])
def test_signal_and_noise_have_unit_variance_and_noise_grows(schedule) -> None:
    levels = schedule.levels
    np.testing.assert_allclose(levels.alpha**2 + levels.sigma**2, 1.0, rtol=1e-14)
    assert (np.diff(levels.sigma) > 0).all()


def test_linear_with_too_few_levels_is_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match=r"terminal signal-to-noise ratio 0\.57.* at most 0\.0101"):
        linear(100)


@pytest.mark.parametrize("bad", [(0.0, 0.02), (0.02, 0.01), (0.1, 1.0), (float("nan"), 0.02)])
def test_betas_outside_their_range_are_refused(bad: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="betas"):
        linear(1000, *bad)


def test_zero_levels_are_refused() -> None:
    with pytest.raises(ValueError, match="num_levels 0"):
        cosine(0)


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 10, 33, 99, 100])
def test_spacing_trails_from_the_last_level_to_clean(steps: int) -> None:
    schedule = cosine(100)
    now, after = schedule.pairs(steps)
    assert len(now) == len(after) == steps
    assert now.time[0] == 99
    assert (np.diff(now.time) < 0).all()
    assert len(set(np.diff(now.time))) <= 2  # even, up to rounding to a trained level
    assert (after.alpha[-1], after.sigma[-1]) == (1.0, 0.0)
    np.testing.assert_array_equal(after.sigma[:-1], now.sigma[1:])


@pytest.mark.parametrize("steps", [0, -1, 101])
def test_steps_outside_the_trained_levels_are_refused(steps: int) -> None:
    with pytest.raises(ValueError, match=f"steps {steps} must be between 1 and 100"):
        cosine(100).pairs(steps)
