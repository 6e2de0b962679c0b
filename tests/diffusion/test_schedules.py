"""Schedules: equal to the published ones, exact between their levels, refused where they cannot be sampled from."""

import numpy as np
import pytest
from diffusers import DDPMScheduler
from every import EVERY_SCHEDULE
from one_case import over

from diffpolicy.diffusion import schedules
from diffpolicy.diffusion.objectives.denoising import Denoising
from diffpolicy.diffusion.parameterization import CLEAN
from diffpolicy.diffusion.schedule import STRAIGHT, VARIANCE_PRESERVING, Levels, Schedule
from diffpolicy.policy.objective_choices import SCHEDULES
from diffpolicy.system.tables import made

THEIR_NAMES = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}


@pytest.mark.parametrize("name", THEIR_NAMES)
@over("is_rescaled", [False, True])
def test_schedules_of_betas_equal_diffusers(name: str, is_rescaled: bool) -> None:
    scheduler = DDPMScheduler(
        1000,
        beta_start=1e-4,
        beta_end=2e-2,
        beta_schedule=THEIR_NAMES[name],
        rescale_betas_zero_snr=is_rescaled,
    )
    ours = made(SCHEDULES, "schedule", name, 1000)
    ours = schedules.zero_terminal_snr(ours) if is_rescaled else ours
    # theirs multiplies 1000 factors in float32: 6e-8 each, relative
    np.testing.assert_allclose(ours.levels.alpha**2, scheduler.alphas_cumprod.numpy(), rtol=2e-4, atol=1e-9)


@over("num_levels", [10, 50, 100])
def test_cosine_equals_diffusers_at_any_number_of_levels(num_levels: int) -> None:
    theirs = DDPMScheduler(num_levels, beta_schedule="squaredcos_cap_v2").alphas_cumprod.numpy()
    np.testing.assert_allclose(schedules.cosine(num_levels).levels.alpha ** 2, theirs, rtol=2e-5, atol=1e-9)  # float32


def test_worked_numbers_of_the_linear_schedule() -> None:
    alpha_bar = schedules.linear(1000).levels.alpha ** 2
    np.testing.assert_allclose(alpha_bar[[99, 499, 999]], [0.90, 0.08, 0.00004], rtol=0.02)  # as printed, rounded


def test_vp_is_the_process_with_a_rate_from_0_1_to_20() -> None:
    """Song et al. 2021b, eq. 29: alpha_bar is exp of minus the integral of the rate, here by the trapezoid rule."""
    t = np.linspace(0, 1, 501)
    rate = 0.1 + t * 19.9
    integral = np.cumsum((rate[1:] + rate[:-1]) / 2 * np.diff(t))
    levels = schedules.vp(500).levels
    np.testing.assert_allclose(levels.alpha**2, np.exp(-integral), rtol=1e-11)  # exact for a linear rate, 500 terms
    np.testing.assert_allclose(levels.time, 1000 * t[1:], rtol=1e-14)


def test_sigmoid_is_point_symmetric_and_falls() -> None:
    """Jabri et al. 2023, algorithm 1 with start -3, end 3 and tau 1, but for the last level, whose beta is capped."""
    alpha_bar = schedules.sigmoid(1000).levels.alpha ** 2
    t = np.arange(1, 1000) / 1000
    ends, falling = 1 / (1 + np.exp([3.0, -3.0])), 1 / (1 + np.exp(-(6 * t - 3)))
    np.testing.assert_allclose(alpha_bar[:-1], (ends[1] - falling) / (ends[1] - ends[0]), rtol=1e-9)
    np.testing.assert_allclose(alpha_bar[:-1] + alpha_bar[-2::-1], 1.0, rtol=1e-12)
    assert alpha_bar[-1] / alpha_bar[-2] == pytest.approx(0.001)


def test_ve_is_a_geometric_progression() -> None:
    sigma = schedules.ve(50, 0.01, 50.0, sigma_data=0.5).levels.sigma
    assert (sigma[0], sigma[-1]) == pytest.approx((0.01, 50.0))
    np.testing.assert_allclose(sigma[1:] / sigma[:-1], 5000 ** (1 / 49), rtol=1e-12)


def test_karras_is_even_in_the_seventh_root() -> None:
    sigma = schedules.karras(50, 0.002, 80.0, sigma_data=0.5).levels.sigma
    assert (sigma[0], sigma[-1]) == pytest.approx((0.002, 80.0))
    np.testing.assert_allclose(np.diff(sigma ** (1 / 7)), (80 ** (1 / 7) - 0.002 ** (1 / 7)) / 49, rtol=1e-10)


def test_flow_is_straight() -> None:
    levels = schedules.flow(50).levels
    np.testing.assert_allclose(levels.sigma, np.arange(1, 51) / 50, rtol=1e-14)
    np.testing.assert_allclose(levels.alpha + levels.sigma, 1.0, rtol=1e-14)
    np.testing.assert_allclose(levels.time, 1000 * levels.sigma, rtol=1e-14)
    assert levels.alpha[-1] == 0.0


@over("name", ["linear", "scaled_linear", "cosine", "sigmoid", "vp"])
def test_zero_terminal_snr_takes_all_signal_from_the_last_level_only(name: str) -> None:
    before = made(SCHEDULES, "schedule", name, 1000).levels
    after = schedules.zero_terminal_snr(made(SCHEDULES, "schedule", name, 1000)).levels
    assert (after.alpha[-1], after.sigma[-1]) == (0.0, 1.0)
    np.testing.assert_allclose(after.alpha[0], before.alpha[0], rtol=1e-14)
    assert (after.alpha[1:-1] > 0).all()
    assert (after.alpha[1:] < before.alpha[1:]).all()
    np.testing.assert_array_equal(after.time, before.time)


def test_zero_terminal_snr_makes_a_schedule_usable_that_is_refused_without() -> None:
    assert Denoising(schedules.zero_terminal_snr(schedules.linear(100)), CLEAN).schedule.levels.alpha[-1] == 0.0


@over("name", ["ve", "karras", "flow"])
def test_zero_terminal_snr_is_refused_on_other_families(name: str) -> None:
    with pytest.raises(ValueError, match="variance-preserving schedules only"):
        schedules.zero_terminal_snr(made(SCHEDULES, "schedule", name, 100))


@over("schedule", EVERY_SCHEDULE)
def test_noise_and_time_grow_and_levels_stay_on_the_familys_curve(schedule: Schedule) -> None:
    levels = schedule.levels
    assert (np.diff(levels.sigma / np.hypot(levels.alpha, levels.sigma)) > 0).all()
    assert (np.diff(levels.time) > 0).all()
    assert (levels.sigma > 0).all()
    curve = {VARIANCE_PRESERVING: levels.alpha**2 + levels.sigma**2, STRAIGHT: levels.alpha + levels.sigma}
    np.testing.assert_allclose(curve.get(schedule.family, levels.alpha), 1.0, rtol=1e-14)


@over("schedule", EVERY_SCHEDULE)
def test_the_input_has_unit_variance_where_it_is_scaled(schedule: Schedule) -> None:
    """VE and Karras: for data of standard deviation 0.5; other schedules feed x as it is."""
    levels = schedule.levels
    if schedule.family in (VARIANCE_PRESERVING, STRAIGHT):
        np.testing.assert_array_equal(levels.input_scale, 1.0)
    else:
        variance = levels.input_scale**2 * ((0.5 * levels.alpha) ** 2 + levels.sigma**2)
        np.testing.assert_allclose(variance, 1.0, rtol=1e-14)
        np.testing.assert_allclose(levels.time, 250 * np.log(levels.sigma), rtol=1e-12, atol=1e-12)


@over("schedule", EVERY_SCHEDULE)
def test_snr_and_lambda_agree(schedule: Schedule) -> None:
    levels = schedule.levels
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(2 * levels.lambdas, np.log(levels.snr), rtol=1e-12, atol=1e-12)
    assert levels.followed_by_clean().snr[-1] == np.inf


@over("schedule", EVERY_SCHEDULE)
def test_a_schedule_gives_back_its_trained_levels(schedule: Schedule) -> None:
    found = schedule.at(schedule.levels.lambdas)
    for name in ("alpha", "sigma", "time", "input_scale"):
        # sigma of a level near clean comes from a logarithm of size 6
        np.testing.assert_allclose(getattr(found, name), getattr(schedule.levels, name), rtol=1e-10, atol=1e-10)


@over("schedule", EVERY_SCHEDULE)
def test_levels_between_the_trained_lie_between_them_on_the_same_curve(schedule: Schedule) -> None:
    known = schedule.levels[slice(0, -1)]  # the last may hold no signal: lambda minus infinity
    middle = schedule.at((known.lambdas[1:] + known.lambdas[:-1]) / 2)
    for name in ("sigma", "time"):
        assert (getattr(known, name)[:-1] < getattr(middle, name)).all()
        assert (getattr(middle, name) < getattr(known, name)[1:]).all()
    np.testing.assert_allclose(middle.lambdas, (known.lambdas[1:] + known.lambdas[:-1]) / 2, rtol=1e-10, atol=1e-12)
    curve = {VARIANCE_PRESERVING: middle.alpha**2 + middle.sigma**2, STRAIGHT: middle.alpha + middle.sigma}
    np.testing.assert_allclose(curve.get(schedule.family, middle.alpha), 1.0, rtol=1e-14)


@over("outside", [3.2, -5.1, np.nan])
def test_a_level_outside_the_trained_is_refused(outside: float) -> None:
    with pytest.raises(ValueError, match=r"must lie within the trained levels' -5\.025 to 3\.108"):
        schedules.vp(100).at(np.array([0.0, outside]))


def test_a_terminal_snr_above_0_0101_is_refused_with_the_reason() -> None:
    """1 / 9.96^2 is just below, 1 / 9.9^2 above."""
    assert Denoising(schedules.ve(100, 0.01, 9.96, 0.5), CLEAN).schedule.levels.snr[-1] < 0.0101
    with pytest.raises(ValueError, match=r"terminal signal-to-noise ratio 0\.0102 must be at most 0\.0101: sampling"):
        Denoising(schedules.ve(100, 0.01, 9.9, 0.5), CLEAN)


def test_the_linear_schedule_with_100_levels_is_refused() -> None:
    with pytest.raises(ValueError, match=r"terminal signal-to-noise ratio 0\.57.* at most 0\.0101.*zero_terminal_snr"):
        Denoising(schedules.linear(100), CLEAN)


def test_levels_that_are_not_numbers_are_refused() -> None:
    levels = schedules.cosine(10).levels
    with pytest.raises(ValueError, match="terminal signal-to-noise ratio nan"):
        Denoising(Schedule(Levels(levels.alpha * np.nan, levels.sigma, levels.time, levels.input_scale)), CLEAN)


@over("name", list(SCHEDULES))
@over("num_levels", [0, -1])
def test_zero_levels_are_refused(name: str, num_levels: int) -> None:
    with pytest.raises(ValueError, match=f"num_levels {num_levels} must be at least"):
        made(SCHEDULES, "schedule", name, num_levels)


@over("name", ["linear", "scaled_linear"])
@over("bad", [(0.0, 0.02), (0.02, 0.01), (0.1, 1.0), (float("nan"), 0.02)])
def test_betas_outside_their_range_are_refused(name: str, bad: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=f"betas {bad[0]} to {bad[1]} must rise within|is nan, expected a finite"):
        made(SCHEDULES, "schedule", {"name": name, "beta_start": bad[0], "beta_end": bad[1]}, 100)


@over("name", ["ve", "karras"])
@over("bad", [(0.0, 80.0), (80.0, 0.002), (0.002, float("inf")), (float("nan"), 80.0)])
def test_sigmas_outside_their_range_are_refused(name: str, bad: tuple[float, float]) -> None:
    with pytest.raises(
        ValueError,
        match=rf"sigma_min {bad[0]} and sigma_max {bad[1]} must rise from above 0|is (inf|nan), expected a finite",
    ):
        made(SCHEDULES, "schedule", {"name": name, "sigma_min": bad[0], "sigma_max": bad[1]}, 100)
