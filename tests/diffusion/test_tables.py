"""Facts about every sampler's table, at every step count, on every schedule that it is defined for."""

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from every import EVERY_SCHEDULE, REFUSED, SamplerCase, per_sampler
from one_case import over

from diffpolicy.diffusion.reverse import reverse
from diffpolicy.diffusion.samplers.ancestral import ddim, ddpm
from diffpolicy.diffusion.samplers.langevin import langevin, predictor_corrector
from diffpolicy.diffusion.samplers.table import Row, StepTable
from diffpolicy.diffusion.schedules import cosine, karras
from diffpolicy.diffusion.spacing import SPACINGS, trailing
from diffpolicy.policy.clip import identity
from diffpolicy.policy.sampler_choices import SAMPLERS_AND_AUTO, TABLES, build_sampler

KARRAS = karras(1000, 0.002, 80.0, sigma_data=0.5)
# Steps of finite length that are off their level even where the clean trajectory is known; test_exact says by how much.
INEXACT_MEAN = ("reverse_sde", "predictor_corrector")  # but on ve and karras, whose alpha stays 1
INEXACT_VARIANCE = (*INEXACT_MEAN, "langevin")  # and heun where churn_noise is not 1


def draws(table: StepTable) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(len(table) + 1, 4, 16, 2, generator=generator, dtype=torch.float64)


def unit_draws(table: StepTable) -> torch.Tensor:
    """Draw i is 1 for batch element i only: after the loop, element i is the factor with which draw i entered."""
    return torch.eye(len(table) + 1, dtype=torch.float64)[:, :, None, None]


@per_sampler
def test_what_the_hook_returns_at_the_last_row_leaves_the_loop_bit_for_bit(case: SamplerCase) -> None:
    """The hook is called at every row, and no row adds to its last output: what it constrains stays constrained."""
    table, seen = case.build(), []

    def hook(clean: torch.Tensor, row: Row, step: int) -> torch.Tensor:
        assert step == len(seen)
        seen.append((row, torch.sin(clean + len(seen))))
        return seen[-1][1]

    result = reverse(lambda x, row: torch.tanh(x), table, draws(table), hook).clean
    assert [row for row, _ in seen] == list(table.rows)
    assert torch.equal(result, seen[-1][1])


@per_sampler
def test_a_step_keeps_a_known_trajectory_at_its_level(case: SamplerCase) -> None:
    """With the true clean trajectory as estimate, x has mean alpha * clean and variance sigma^2 at every row."""
    table, clean = case.build(), 0.7
    noise = torch.cat([unit_draws(table), torch.zeros(len(table) + 1, 1, 1, 1, dtype=torch.float64)], dim=1)
    noise[0] += clean * table.rows[0].alpha / table.rows[0].sigma
    is_mean_exact = case.config.name not in INEXACT_MEAN or case.on in ("ve", "karras")
    # rounding is relative to VE's sigma of 80; Heun's long steps begin at a sigma / alpha of 2e4
    rounding = 1e-9 if case.config.name == "heun" else 1e-12 * (1 + table.rows[0].sigma)
    is_variance_exact = (
        case.config.name not in INEXACT_VARIANCE
        and getattr(case.config, "variance", "posterior") == "posterior"
        and getattr(case.config, "churn_noise", 1.0) == 1.0
    )

    def denoise(x: torch.Tensor, row: Row) -> torch.Tensor:
        mean, factors = x[-1], x[:-1] - x[-1]
        if is_mean_exact:
            assert float(mean) == pytest.approx(row.alpha * clean, abs=rounding)
        if is_variance_exact:  # differences of squares, and sigma / alpha of 2e4 under Heun's: cancellation
            assert float(factors.square().sum()) == pytest.approx(row.sigma**2, rel=1e-7)
        return torch.full_like(x, clean)

    assert torch.isfinite(reverse(denoise, table, noise, identity).clean).all()


@per_sampler
def test_rows_lie_at_trained_levels_or_between(case: SamplerCase) -> None:
    table, levels = case.build(), case.schedule.levels
    assert len(table) >= case.config.steps
    is_raised = getattr(case.config, "churn", 0.0) > 0.0 and case.on in ("ve", "karras")  # EDM goes beyond the last
    for name in () if is_raised else ("alpha", "sigma", "time", "input_scale"):
        ours, trained = getattr(table.now, name), getattr(levels, name)
        assert (ours >= trained.min() - 1e-9).all()
        assert (ours <= trained.max() + 1e-9).all()


@over("case", REFUSED)
def test_a_sampler_is_refused_with_the_reason_where_it_is_undefined(case: SamplerCase) -> None:
    with pytest.raises(ValueError, match=r"holds no signal|flow_heun needs the straight path"):
        case.build()


@over("name", list(TABLES))
@over("steps", [0, -1, 101])
def test_steps_outside_the_trained_levels_are_refused(name: str, steps: int) -> None:
    with pytest.raises(ValueError, match=f"steps {steps} must be between 1 and 100"):
        build_sampler(cosine(100), {"name": name, "steps": steps})


@over(
    "settings, message",
    [
        *(({"name": "ddim", "eta": bad}, f"eta {bad} must be between 0") for bad in (-0.1, 1.1)),
        *(({"name": "ddim", "eta": bad}, f"eta is {bad}, expected a finite number") for bad in (math.inf, math.nan)),
        *(({"name": "heun", "churn": bad}, f"churn is {bad}, expected a finite") for bad in (math.inf, math.nan)),
        ({"name": "heun", "churn": -1.0}, "churn -1.0 must be at least 0"),
        *(
            ({"name": name, "langevin_rate": bad}, f"rate {bad} must be above 0 and at most 1")
            for name in ("langevin", "predictor_corrector")
            for bad in (0.0, -0.1, 1.1)
        ),
        ({"name": "heun", "churn_min": 2.0, "churn_max": 1.0}, "churn_min 2.0 and churn_max 1.0 must rise from 0"),
        ({"name": "heun", "churn_noise": -1.0}, "churn_noise -1.0 must be at least 0"),
        ({"name": "heun", "max_weight": 0.0}, "max_weight 0.0 must be above 0"),
        ({"name": "langevin", "langevin_steps": 0}, "langevin_steps 0 must be between 1 and 100"),
        ({"name": "predictor_corrector", "langevin_steps": -1}, "langevin_steps -1 must be between 0 and 100"),
        ({"name": "ddpm", "variance": "small"}, "variance 'small' must be 'posterior', 'beta' or 'learned'"),
        ({"name": "unipc", "order": 4}, "order 4 must be between 1 and 3"),
        (
            {"name": "nonsense"},
            f"'nonsense' is unknown, expected one of {', '.join(sorted(SAMPLERS_AND_AUTO))}",
        ),
        (
            {"name": "ddim", "spacing": "nonsense"},
            f"spacing: 'nonsense' is unknown, expected one of {', '.join(sorted([*SPACINGS, 'stored']))}",
        ),
    ],
)
def test_settings_outside_their_range_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_sampler(cosine(100), settings)


def same(first: StepTable, second: StepTable, rows: slice = slice(None)) -> None:
    for one, other in zip(first.rows[rows], second.rows[rows], strict=True):
        np.testing.assert_allclose(
            (one.alpha, one.sigma, one.time, one.a, one.b, one.s),
            (other.alpha, other.sigma, other.time, other.a, other.b, other.s),
            rtol=1e-9,  # DDPM's a is a difference of squares
            atol=1e-12,
        )
        assert not any(one.c + other.c)


@over("steps", [1, 10, 100])
@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("euler", {"name": "ddim", "eta": 0.0}),
        ("flow_euler", {"name": "ddim", "eta": 0.0}),
        ("ddpm", {"name": "ddim", "eta": 1.0}),
        ("reverse_sde", {"name": "predictor_corrector", "langevin_steps": 0}),
    ],
)
def test_aliases_are_the_same_table(name: str, other: Any, steps: int) -> None:
    schedule = cosine(100)
    same(
        build_sampler(schedule, {"name": name, "steps": steps}),
        build_sampler(schedule, {**other, "steps": steps}),
    )


@over("schedule", EVERY_SCHEDULE)
@pytest.mark.parametrize(
    ("name", "order_1"), [("dpmpp_2m", "ddim"), ("dpmpp_3m", "ddim"), ("unipc", "ddim"), ("dpmpp_2m_sde", "ddpm")]
)
def test_multistep_solvers_begin_and_end_with_a_step_of_order_1(schedule, name: str, order_1: str) -> None:
    """DPM-Solver++ 1 is DDIM, its SDE form is DDPM."""
    same(
        build_sampler(schedule, {"name": name, "steps": 2}),
        build_sampler(schedule, {"name": order_1, "steps": 2}),
    )


def test_ddpm_variances_are_the_posterior_and_beta() -> None:
    """Ho et al. 2020, eq. 7 and section 3.2, written out with alpha_bar."""
    now = trailing(cosine(100), 100)
    alpha_bar, alpha_bar_after = now.alpha**2, np.append(now.alpha[1:] ** 2, 1.0)
    beta = 1 - alpha_bar / alpha_bar_after
    posterior = beta * (1 - alpha_bar_after) / (1 - alpha_bar)
    np.testing.assert_allclose(ddpm(now, "posterior").s ** 2, posterior, atol=1e-14)
    np.testing.assert_allclose(ddpm(now, "beta").s ** 2, np.append(beta[:-1], 0.0), atol=1e-14)


@over("steps", [1, 2, 7, 18])
@pytest.mark.parametrize("churn", [0.0, 3.0, 40.0])
@over("low, high, noise_scale", [(0.0, None, 1.0), (0.05, 50.0, 1.003), (0.0, 100.0, 0.5)])
def test_heun_is_algorithm_2_of_karras(
    steps: int, churn: float, low: float, high: float | None, noise_scale: float
) -> None:
    """Karras et al. 2022, with churn in the first step, beyond sigma_max."""
    churned = {"churn": churn, "churn_min": low, "churn_max": high, "churn_noise": noise_scale}
    choice = {"name": "heun", "steps": steps, "spacing": "trailing", "max_weight": None, **churned}
    table = build_sampler(KARRAS, choice)
    noise, t = draws(table), [*trailing(KARRAS, steps).sigma.tolist(), 0.0]
    first = table.start / t[0]  # ours draws the start and the noise of the first step at once

    def slope(x: torch.Tensor, t: float) -> torch.Tensor:
        return (x - torch.tanh(x + math.log(t))) / t

    x = t[0] * noise[0]
    for i in range(steps):
        gamma = min(churn / steps, 2**0.5 - 1) if low <= t[i] <= (high or math.inf) else 0.0
        t_hat = t[i] * (1 + gamma)
        fresh = noise_scale * (t_hat**2 - t[i] ** 2) ** 0.5
        if i == 0:
            assert table.start == pytest.approx(math.hypot(t[0], fresh))
        x_hat = x + fresh * noise[2 * i] if i > 0 else first * x
        d = slope(x_hat, t_hat)
        x = x_hat + (t[i + 1] - t_hat) * d
        if t[i + 1] > 0:
            x = x_hat + (t[i + 1] - t_hat) * (d + slope(x, t[i + 1])) / 2
    ours = reverse(lambda x, row: torch.tanh(x + math.log(row.sigma)), table, noise, identity).clean
    torch.testing.assert_close(ours, x, rtol=0, atol=1e-11)  # float64 from a start of 80


def test_a_churned_level_has_its_own_time_where_that_is_known_and_is_trained_elsewhere() -> None:
    """EDM's network knows any sigma; one that was trained with the index of a level knows no others."""
    raised = build_sampler(KARRAS, {"name": "heun", "steps": 5, "churn": 1.0}).rows[0]
    assert (raised.sigma, raised.time) == pytest.approx((80.0 * 1.2, 250.0 * math.log(80.0 * 1.2)))
    last = build_sampler(cosine(100), {"name": "heun", "steps": 5, "churn": 1.0}).rows[0]
    assert last.time == 99.0


@over("rate", [0.05, 0.3, 1.0])
def test_a_walk_at_one_level_settles_at_langevins_stationary_variance(rate: float) -> None:
    """Noisy data N(0, V), V = sigma^2 / (1 - g): that of x = p x + q x[-1] + noise, off by O(rate^2)."""
    now, v = trailing(cosine(100), 100)[np.array([40])], 0.3
    table = langevin(now, steps_per_level=400, rate=rate)
    variance = now.alpha[0] ** 2 * v + now.sigma[0] ** 2
    reached = []

    def denoise(x: torch.Tensor, row: Row) -> torch.Tensor:
        reached.append(float(x.square().sum()))
        return row.alpha * v / variance * x

    reverse(denoise, table, unit_draws(table), identity)
    decay, g = math.exp(-rate), 1 - now.sigma[0] ** 2 / variance
    p, q = decay + 1.5 * (1 - decay) * g, -0.5 * (1 - decay) * g
    settled = (1 - decay**2) * now.sigma[0] ** 2 * (1 - q) / ((1 + q) * (1 - p - q) * (1 + p - q))
    assert reached[-1] == pytest.approx(settled, rel=1e-6)
    assert settled == pytest.approx(variance, rel=0.1 * rate**2)  # Euler's steps: rate sigma^2 / 2V


def test_langevin_steps_are_as_many_at_the_last_level_as_at_the_others() -> None:
    now = trailing(cosine(100), 5)
    for table, expected in ((langevin(now, 3), [3] * 5), (predictor_corrector(now, 2), [1, 3, 3, 3, 3])):
        assert [*Counter(row.sigma for row in table.rows).values()] == expected


def test_wrong_number_of_noise_draws_is_refused() -> None:
    with pytest.raises(ValueError, match=r"noise has 3 draws, expected 11"):
        reverse(lambda x, row: x, ddim(trailing(cosine(100), 10)), torch.zeros(3, 1, 16, 2), identity)


def test_a_table_whose_last_row_is_not_clean_is_refused() -> None:
    table = ddim(trailing(cosine(100), 10))
    with pytest.raises(ValueError, match=r"last row .* expected \(0, 1"):
        StepTable(table.now, a=table.a + 0.1, b=table.b, s=table.s)


@pytest.mark.parametrize("column", ["a", "b", "s", "c"])
def test_a_column_needs_a_finite_number_for_every_level(column: str) -> None:
    table = ddim(trailing(cosine(100), 10))
    columns = {"a": table.a, "b": table.b, "s": table.s, "c": np.zeros((10, 1))}
    not_finite = columns[column].copy()
    not_finite[3] = np.nan
    for wrong in (columns[column][1:], not_finite):
        with pytest.raises(ValueError, match=f"sampler: {column} is .* for each of 10 levels"):
            StepTable(table.now, **{**columns, column: wrong})


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [0, 4, 9])
def test_an_estimate_that_is_not_finite_is_told_of_its_row_whatever_the_projection_makes_of_it(
    bad: float, at: int
) -> None:
    table = ddim(trailing(cosine(100), 10))

    def denoise(x: torch.Tensor, row: Row) -> torch.Tensor:
        clean = torch.tanh(x)
        if row == table.rows[at]:
            clean[1, 3, 0] = bad
        return clean

    found = reverse(denoise, table, draws(table), lambda clean, row, step: clean.nan_to_num(0.0, 1.0, -1.0))
    assert found.clean.isfinite().all()
    assert found.is_finite.tolist() == [row != 1 for row in range(len(found.clean))]
