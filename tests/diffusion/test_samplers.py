"""Every sampler against diffusers with the same noise, against an exact denoiser, and against its own definition."""

import functools
import importlib.util
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from diffpolicy.build import SAMPLERS, build_sampler
from diffpolicy.config import SamplerConfig
from diffpolicy.constraints.projection import clip, identity
from diffpolicy.diffusion.reverse import reverse
from diffpolicy.diffusion.samplers.ancestral import ddim, ddpm
from diffpolicy.diffusion.samplers.table import Row, StepTable
from diffpolicy.diffusion.schedule import cosine

_spec = importlib.util.spec_from_file_location("mixture", Path(__file__).with_name("mixture.py"))
mixture = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(mixture)

SCHEDULE = cosine(100)
EVERY_SAMPLER = [
    pytest.param(build_sampler(SCHEDULE, SamplerConfig(name=name, steps=steps)), id=f"{name}-{steps}")
    for name in SAMPLERS
    for steps in (1, 2, 5, 10, 30, 100)
]


def network(x: torch.Tensor, time: int) -> torch.Tensor:
    """Some smooth function of x and time: an epsilon that is far from ideal, so that clipping acts."""
    return 0.7 * torch.tanh(x) + 0.3 * math.sin(0.1 * time)


def denoise(x: torch.Tensor, row: Row) -> torch.Tensor:
    return (x - row.sigma * network(x, int(row.time))) / row.alpha


def start_noise(table: StepTable, batch: int = 8) -> torch.Tensor:
    shape = (len(table) + 1, batch, 16, 2)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def diffusers_samples(scheduler, noise: torch.Tensor, **step_arguments) -> torch.Tensor:
    # their alpha_bar is float32; with ours, equal up to that (test_schedule), the steps must agree to float64
    scheduler.alphas_cumprod = torch.as_tensor(SCHEDULE.levels.alpha**2)
    x = noise[0] * SCHEDULE.levels.sigma[-1]
    for i, time in enumerate(scheduler.timesteps.tolist()):
        draws = {"variance_noise": noise[i + 1]} if isinstance(scheduler, DDIMScheduler) else {}
        with pytest.MonkeyPatch.context() as patch:  # DDPM draws its own noise: give it ours
            ours = functools.partial(lambda draw, *_, **__: draw, noise[i + 1])
            patch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", ours)
            x = scheduler.step(network(x, time), time, x, **step_arguments, **draws).prev_sample
    return x


@pytest.mark.parametrize("is_clipped", [False, True])
@pytest.mark.parametrize(("variance", "theirs"), [("posterior", "fixed_small"), ("beta", "fixed_large")])
@pytest.mark.parametrize("steps", [100, 50, 20, 10])
def test_ddpm_equals_diffusers(variance: str, theirs: str, steps: int, is_clipped: bool) -> None:
    table = ddpm(SCHEDULE, steps, variance)
    scheduler = DDPMScheduler(
        100,
        beta_schedule="squaredcos_cap_v2",
        variance_type=theirs,
        clip_sample=is_clipped,
        timestep_spacing="trailing",
    )
    scheduler.set_timesteps(steps)
    noise = start_noise(table)
    noise[-1] = 0.0  # on strided levels with fixed_large theirs adds noise even to the last, clean sample; ours never
    ours = reverse(denoise, table, noise, clip(-1, 1) if is_clipped else identity)
    torch.testing.assert_close(ours, diffusers_samples(scheduler, noise), rtol=1e-9, atol=1e-9)  # 100 steps of float64


@pytest.mark.parametrize("is_clipped", [False, True])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("steps", [100, 50, 20, 10, 5])
def test_ddim_equals_diffusers(eta: float, steps: int, is_clipped: bool) -> None:
    table = ddim(SCHEDULE, steps, eta)
    scheduler = DDIMScheduler(
        100, beta_schedule="squaredcos_cap_v2", clip_sample=is_clipped, timestep_spacing="trailing"
    )
    scheduler.set_timesteps(steps)
    noise = start_noise(table)
    ours = reverse(denoise, table, noise, clip(-1, 1) if is_clipped else identity)
    # only with use_clipped_model_output does diffusers re-encode the noise from the clipped estimate, as we do
    theirs = diffusers_samples(scheduler, noise, eta=eta, use_clipped_model_output=is_clipped)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)  # 100 steps of float64


@pytest.mark.parametrize("steps", [10, 100])
def test_ddim_with_eta_1_is_ddpm(steps: int) -> None:
    first, second = ddim(SCHEDULE, steps, eta=1.0), ddpm(SCHEDULE, steps)
    for name in ("a", "b", "s"):
        np.testing.assert_allclose(getattr(first, name), getattr(second, name), atol=1e-15)


def test_ddpm_variances_are_the_posterior_and_beta() -> None:
    """Ho et al. 2020, eq. 7 and section 3.2, written out with alpha_bar."""
    alpha_bar = SCHEDULE.levels.alpha[::-1] ** 2  # from the last level down
    alpha_bar_after = np.append(alpha_bar[1:], 1.0)
    beta = 1 - alpha_bar / alpha_bar_after
    posterior = beta * (1 - alpha_bar_after) / (1 - alpha_bar)
    np.testing.assert_allclose(ddpm(SCHEDULE, 100, "posterior").s ** 2, posterior, atol=1e-14)
    np.testing.assert_allclose(ddpm(SCHEDULE, 100, "beta").s[:-1] ** 2, beta[:-1], atol=1e-14)


@pytest.mark.parametrize("table", EVERY_SAMPLER)
def test_last_row_returns_the_clean_estimate(table: StepTable) -> None:
    last = table.rows[-1]
    assert (last.a, last.b, last.s) == pytest.approx((0, 1, 0), abs=1e-12)
    estimates = []

    def remember(clean: torch.Tensor, row: Row) -> torch.Tensor:
        estimates.append(clean)
        return clean

    result = reverse(denoise, table, start_noise(table), remember)
    torch.testing.assert_close(result, estimates[-1], rtol=1e-12, atol=0)


@pytest.mark.parametrize("table", EVERY_SAMPLER)
def test_a_step_keeps_a_known_trajectory_at_its_level(table: StepTable) -> None:
    """With the true clean trajectory as estimate, x has mean alpha * clean and variance sigma^2 at every level."""
    alpha, variance = table.rows[0].alpha, table.rows[0].sigma ** 2
    levels = [(row.alpha, row.sigma) for row in table.rows[1:]] + [(1.0, 0.0)]
    for row, (alpha_after, sigma_after) in zip(table.rows, levels, strict=True):
        alpha, variance = row.a * alpha + row.b, row.a**2 * variance + row.s**2
        assert alpha == pytest.approx(alpha_after, abs=1e-9)
        assert variance == pytest.approx(sigma_after**2, abs=1e-9)


@pytest.mark.parametrize("table", EVERY_SAMPLER)
def test_a_users_hook_is_called_at_every_reverse_step_and_its_output_is_returned(table: StepTable) -> None:
    seen: list[Row] = []

    def hook(clean: torch.Tensor, row: Row) -> torch.Tensor:
        seen.append(row)
        return clean.clamp(-0.25, 0.5)

    result = reverse(denoise, table, start_noise(table), hook)
    assert seen == list(table.rows)
    assert result.min() == -0.25
    assert result.max() == 0.5


@pytest.mark.parametrize(("name", "steps", "bound"), [("ddpm", 100, 0.03), ("ddim", 100, 0.03), ("ddim", 20, 0.06)])
def test_samples_of_an_exact_denoiser_follow_its_distribution(name: str, steps: int, bound: float) -> None:
    """Wasserstein-1 to true samples along fixed directions; two true samples of this size are 0.01 to 0.02 apart."""
    generator = torch.Generator().manual_seed(1)
    table = build_sampler(SCHEDULE, SamplerConfig(name=name, steps=steps))
    noise = torch.randn(len(table) + 1, 8000, 1, 2, generator=generator, dtype=torch.float64)
    ours = reverse(mixture.exact_denoise, table, noise, identity)[:, 0]
    truth = mixture.sample_mixture(8000, generator)
    for angle in torch.arange(4) * torch.pi / 4:
        direction = torch.stack([angle.cos(), angle.sin()]).double()
        distance = ((ours @ direction).sort().values - (truth @ direction).sort().values).abs().mean()
        assert distance < bound


def test_ddim_converges_to_the_ode_with_order_1() -> None:
    """Errors against a fine grid shrink in proportion to the step; medians, since a few samples sit between modes."""
    schedule = cosine(2560)
    noise = torch.randn(1, 400, 1, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def samples(steps: int) -> torch.Tensor:
        return reverse(mixture.exact_denoise, ddim(schedule, steps), noise.expand(steps + 1, -1, -1, -1), identity)

    truth = samples(2560)
    errors = [float((samples(steps) - truth).norm(dim=-1).median()) for steps in (20, 40, 80)]
    orders = [np.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]
    assert all(0.8 < order < 1.4 for order in orders), orders


def test_wrong_number_of_noise_draws_is_refused() -> None:
    with pytest.raises(ValueError, match=r"noise has 3 draws, expected 11"):
        reverse(denoise, ddim(SCHEDULE, 10), torch.zeros(3, 1, 16, 2), identity)


def test_a_table_whose_last_row_is_not_clean_is_refused() -> None:
    table = ddim(SCHEDULE, 10)
    with pytest.raises(ValueError, match=r"last row .* expected \(0, 1"):
        StepTable(table.now, a=table.a + 0.1, b=table.b, s=table.s)


@pytest.mark.parametrize("eta", [-0.1, 1.1, float("nan")])
def test_eta_outside_0_to_1_is_refused(eta: float) -> None:
    with pytest.raises(ValueError, match="eta"):
        ddim(SCHEDULE, 10, eta)


def test_unknown_variance_is_refused() -> None:
    with pytest.raises(ValueError, match="variance 'small' must be 'posterior' or 'beta'"):
        ddpm(SCHEDULE, 10, "small")
