"""What a network's output means: every parameterization against clean trajectory, noise, and one another."""

import mixture
import numpy as np
import pytest
import torch
from every import EVERY_SCHEDULE
from one_case import over

from diffpolicy.diffusion.objectives.denoising import Denoising
from diffpolicy.diffusion.parameterization import SCORE, Parameterization, edm
from diffpolicy.diffusion.samplers.table import rows_at
from diffpolicy.diffusion.schedule import Schedule
from diffpolicy.diffusion.schedules import cosine, karras
from diffpolicy.diffusion.spacing import trailing
from diffpolicy.policy.objective_choices import PARAMETERIZATIONS
from diffpolicy.system.tables import made

MADE = {name: made(PARAMETERIZATIONS, "parameterization", name) for name in PARAMETERIZATIONS}
EVERY = pytest.mark.parametrize("parameterization", MADE.values(), ids=MADE)
CLEAN, NOISE = torch.randn(2, 8, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def levels_of(schedule: Schedule, *parameterizations: Parameterization) -> tuple[torch.Tensor, torch.Tensor]:
    """alpha and sigma [levels] of all levels on which these parameterizations are allowed."""
    alpha, sigma = torch.from_numpy(schedule.levels.alpha), torch.from_numpy(schedule.levels.sigma)
    is_allowed = (alpha > 0) | torch.tensor(not any(p.needs_signal for p in parameterizations))
    return alpha[is_allowed], sigma[is_allowed]


def target(parameterization: Parameterization, alpha: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """[draws, levels]"""
    on_clean, on_noise = parameterization.target(alpha, sigma)
    return on_clean * CLEAN + on_noise * NOISE


def clean_estimate(
    parameterization: Parameterization, output: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor
) -> torch.Tensor:
    """[draws, levels]"""
    skip, out = parameterization.clean_from_output(alpha, sigma)
    return skip * (alpha * CLEAN + sigma * NOISE) + out * output


@over("schedule", EVERY_SCHEDULE)
@EVERY
def test_the_target_converts_back_to_the_clean_trajectory(schedule, parameterization: Parameterization) -> None:
    alpha, sigma = levels_of(schedule, parameterization)
    estimate = clean_estimate(parameterization, target(parameterization, alpha, sigma), alpha, sigma)
    # noise and score divide by alpha, down to 5e-5: float64's 1e-16 grows to 1e-11
    torch.testing.assert_close(estimate, CLEAN.expand_as(estimate), rtol=0, atol=1e-10)


@over("schedule", EVERY_SCHEDULE)
@over("second", MADE.values())
@pytest.mark.parametrize("first", MADE)
def test_any_output_converts_to_any_other_through_the_clean_estimate(
    schedule, first: str, second: Parameterization
) -> None:
    one, other = MADE[first], second
    alpha, sigma = levels_of(schedule, one, other)
    clean = clean_estimate(one, target(one, alpha, sigma), alpha, sigma)
    output = other.output_from_clean(clean, alpha * CLEAN + sigma * NOISE, alpha, sigma)
    # a noise estimate is a difference over sigma (at least 0.002), a score is that over sigma again
    error = sigma.clamp(max=1.0) ** 2 * (output - target(other, alpha, sigma))
    torch.testing.assert_close(error, torch.zeros_like(error), rtol=0, atol=1e-10)


@over("schedule", EVERY_SCHEDULE)
@EVERY
def test_output_from_clean_inverts_clean_from_output(schedule, parameterization: Parameterization) -> None:
    """For any output, not only for targets."""
    alpha, sigma = levels_of(schedule, parameterization)
    output = torch.sin(7 * CLEAN + NOISE).expand(-1, len(alpha))
    clean = clean_estimate(parameterization, output, alpha, sigma)
    back = parameterization.output_from_clean(clean, alpha * CLEAN + sigma * NOISE, alpha, sigma)
    error = sigma.clamp(max=1.0) ** 2 * (back - output)  # as above
    torch.testing.assert_close(error, torch.zeros_like(error), rtol=0, atol=1e-10)


@over("schedule", EVERY_SCHEDULE)
@EVERY
def test_noise_and_score_are_refused_where_no_signal_is_left(schedule, parameterization: Parameterization) -> None:
    if schedule.levels.alpha[-1] == 0.0 and parameterization in (MADE["epsilon"], MADE["score"]):
        with pytest.raises(ValueError, match=r"alpha 0, .* use the parameterization clean, v, flow or edm"):
            Denoising(schedule, parameterization)
    else:
        assert np.isfinite(Denoising(schedule, parameterization).table.values.numpy()).all()


def test_edm_is_table_1_of_karras() -> None:
    """Table 1 at alpha 1: c_skip, c_out, and the effective target (clean - c_skip x) / c_out of their appendix B.6."""
    sigma_data, sigma = 0.5, torch.tensor([0.002, 0.1, 0.5, 3.0, 80.0], dtype=torch.float64)
    alpha = torch.ones_like(sigma)
    skip, out = edm(sigma_data).clean_from_output(alpha, sigma)
    torch.testing.assert_close(skip, sigma_data**2 / (sigma**2 + sigma_data**2))
    torch.testing.assert_close(out, sigma * sigma_data / (sigma**2 + sigma_data**2) ** 0.5)
    effective_target = (CLEAN - skip * (CLEAN + sigma * NOISE)) / out
    torch.testing.assert_close(target(edm(sigma_data), alpha, sigma), effective_target)


@over("schedule", EVERY_SCHEDULE)
@over("sigma_data", [0.1, 0.5, 2.0])
def test_edms_target_and_input_have_unit_variance(schedule, sigma_data: float) -> None:
    """For data of standard deviation sigma_data, at every level; the input where the schedule scales it."""
    on_clean, on_noise = edm(sigma_data).target(*levels_of(schedule))
    np.testing.assert_allclose((on_clean * sigma_data) ** 2 + on_noise**2, 1.0, rtol=1e-12)
    levels = karras(10, 0.002, 80.0, sigma_data).levels
    np.testing.assert_allclose(levels.input_scale**2 * (sigma_data**2 + levels.sigma**2), 1.0, rtol=1e-14)


@over("sigma_data", [0.0, -1.0, float("inf"), float("nan")])
def test_edm_without_a_spread_of_the_data_is_refused(sigma_data: float) -> None:
    with pytest.raises(ValueError, match=f"sigma_data {sigma_data} must be above 0"):
        edm(sigma_data)


@pytest.mark.parametrize("schedule_of_rows", [cosine(100), karras(100, 0.002, 80.0, 0.5)], ids=["vp", "ve"])
def test_the_score_is_the_gradient_of_the_log_density(schedule_of_rows: Schedule) -> None:
    """Tweedie's formula, against automatic differentiation of a mixture's density."""
    for row in rows_at(trailing(schedule_of_rows, 10)):
        x = (row.alpha * 0.5 + row.sigma) * torch.randn(64, 1, 2, generator=torch.Generator().manual_seed(0)).double()
        x.requires_grad_()
        (gradient,) = torch.autograd.grad(mixture.IN_2D.log_density(x, row).sum(), x)
        score = SCORE.output_from_clean(mixture.IN_2D.denoise(x, row), x, row.alpha, row.sigma)
        torch.testing.assert_close(score, gradient, rtol=1e-9, atol=1e-9 / row.sigma)  # (alpha clean - x) / sigma^2
