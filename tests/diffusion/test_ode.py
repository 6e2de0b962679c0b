"""The probability-flow ODE and the densities it gives, against mixtures whose density is known."""

import math

import numpy as np
import pytest
import torch
from mixture import IN_2D
from one_case import over

from diffpolicy.diffusion.likelihood import elbo, gaussian_log_density, log_likelihood
from diffpolicy.diffusion.ode import METHODS, Flow, great_circle
from diffpolicy.diffusion.reverse import reverse
from diffpolicy.diffusion.samplers.ancestral import ddim
from diffpolicy.diffusion.samplers.table import rows_at
from diffpolicy.diffusion.schedules import cosine, linear, zero_terminal_snr
from diffpolicy.diffusion.spacing import trailing
from diffpolicy.policy.clip import identity
from diffpolicy.policy.objective_choices import SCHEDULES
from diffpolicy.system.tables import made

EVERY_SCHEDULE = over("name", [*SCHEDULES, "zero_terminal_snr"])


def flow_on(name: str) -> Flow:
    if name == "zero_terminal_snr":
        return Flow(IN_2D.denoise, zero_terminal_snr(linear(1000)))
    return Flow(IN_2D.denoise, made(SCHEDULES, "schedule", name, 1000))


def samples_at_the_lowest_level(flow: Flow, count: int = 64) -> torch.Tensor:
    """[count, 1, 2]"""
    generator = torch.Generator().manual_seed(3)
    component = torch.multinomial(IN_2D.weights, count, replacement=True, generator=generator)
    noise = torch.randn(2, count, 2, generator=generator, dtype=torch.float64)
    level = rows_at(flow.schedule.levels[:1])[0]
    return (level.alpha * (IN_2D.means[component] + IN_2D.std * noise[0]) + level.sigma * noise[1])[:, None]


@EVERY_SCHEDULE
def test_the_log_likelihood_is_exact_to_1e_5(name: str) -> None:
    """RK4 with 200 steps, and the exact density at the last level."""
    flow = flow_on(name)
    x = samples_at_the_lowest_level(flow)
    first, last = rows_at(flow.schedule.levels[[0, -1]])
    found = log_likelihood(flow, x, steps=200, terminal=lambda end: IN_2D.log_density(end, last).sum(1))
    torch.testing.assert_close(found, IN_2D.log_density(x, first).sum(1), rtol=0, atol=1e-5)


def test_the_adaptive_log_likelihood_is_exact() -> None:
    flow = flow_on("cosine")
    x = samples_at_the_lowest_level(flow, 8)
    first, last = rows_at(flow.schedule.levels[[0, -1]])
    at_the_end = {"terminal": lambda end: IN_2D.log_density(end, last).sum(1)}
    found = log_likelihood(flow, x, steps=1, method="adaptive", **at_the_end)
    # the error allowed in a step is 1e-6 of a state whose last entry grows to some nats
    torch.testing.assert_close(found, IN_2D.log_density(x, first).sum(1), rtol=0, atol=1e-4)


def test_by_default_the_last_level_is_taken_for_a_gaussian() -> None:
    flow = flow_on("cosine")
    x = samples_at_the_lowest_level(flow)
    exact = IN_2D.log_density(x, rows_at(flow.schedule.levels[:1])[0]).sum(1)
    # what is left of the clean trajectory at the last level, alpha 5e-5, shifts the density by alpha * x
    torch.testing.assert_close(log_likelihood(flow, x, steps=200), exact, rtol=0, atol=1e-3)


def test_hutchinsons_estimate_is_right_on_average() -> None:
    flow = flow_on("linear")
    x = samples_at_the_lowest_level(flow, 4)
    bits = torch.randint(2, (2000, *x.shape), generator=torch.Generator().manual_seed(0))
    estimate = log_likelihood(flow, x, steps=20, probes=2.0 * bits.double() - 1.0)
    # the standard error of 2000 probes is below 0.02
    torch.testing.assert_close(estimate, log_likelihood(flow, x, steps=20), rtol=0, atol=0.06)


def test_the_density_of_several_waypoints_is_the_product_of_theirs() -> None:
    flow = flow_on("cosine")
    x = samples_at_the_lowest_level(flow, 12)
    together = log_likelihood(flow, x.reshape(4, 3, 2), steps=50)
    torch.testing.assert_close(together, log_likelihood(flow, x, steps=50).reshape(4, 3).sum(1), rtol=0, atol=1e-9)


def test_the_elbo_is_below_the_log_density_and_not_far() -> None:
    schedule = cosine(1000)
    x = samples_at_the_lowest_level(flow_on("cosine"), 256)
    clean = rows_at(schedule.levels[:1])[0]
    bound = elbo(schedule, IN_2D.denoise, x, draws=4, generator=torch.Generator().manual_seed(0))
    exact = IN_2D.log_density(x, clean).sum(1)
    gap = float((exact - bound).mean())
    assert 0.0 < gap < 1.0, gap  # the decoder's noise, about that of the data's first level, costs most of it


@pytest.mark.parametrize("method", METHODS)
@EVERY_SCHEDULE
def test_noise_leads_back_to_the_trajectory(name: str, method: str) -> None:
    flow = flow_on(name)
    x = samples_at_the_lowest_level(flow)
    steps = {"ddim": 800, "rk4": 200, "adaptive": 1}[method]
    back = flow.to_clean(flow.to_noise(x, steps, method), steps, method)
    # The step to the lowest level is undone up to the square of its noise over the data's variance, (0.01 / 0.14)^4.
    allowed = {"ddim": 5e-2, "rk4": 2e-4, "adaptive": 1e-3}[method]  # order 1; tolerance 1e-6, which the way amplifies
    assert float((back - x).abs().median()) < allowed


@over("name", ["cosine", "linear", "flow"])
def test_decoding_ends_where_ddim_does(name: str) -> None:
    """At the clean estimate, alpha 1, and not at the lowest level, with its noise."""
    flow = flow_on(name)
    noise = torch.randn(1, 200, 1, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    table = ddim(trailing(flow.schedule, 1000))
    expected = reverse(flow.denoise, table, noise.expand(1001, -1, -1, -1), identity).clean
    found = flow.to_clean(noise[0], 1000, "ddim")
    assert float((found - expected).abs().median()) < 1e-3  # order 1; a level without signal starts from pure noise


def test_the_round_trip_falls_with_the_step_count() -> None:
    flow = flow_on("cosine")
    x = samples_at_the_lowest_level(flow)
    errors = [float((flow.to_clean(flow.to_noise(x, n, "ddim"), n, "ddim") - x).abs().median()) for n in (25, 100, 400)]
    assert errors[0] > 2.5 * errors[1] > 2.5**2 * errors[2]


def test_the_noise_of_samples_is_standard_normal() -> None:
    flow = flow_on("cosine")
    noise = flow.to_noise(samples_at_the_lowest_level(flow, 4000), 100, "rk4").flatten()
    quantiles = torch.quantile(noise, torch.tensor([0.16, 0.5, 0.84], dtype=torch.float64))
    # the standard error of a quantile of 8000 draws is about 0.015
    torch.testing.assert_close(quantiles, torch.tensor([-0.994, 0.0, 0.994], dtype=torch.float64), rtol=0, atol=0.06)


@over("method, steps, reason", [("midpoint", 5, "expected one of ddim"), ("rk4", 0, "steps 0")])
def test_unknown_methods_and_step_counts_are_refused(method: str, steps: int, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        flow_on("cosine").to_noise(torch.zeros(1, 1, 2), steps, method)


def test_the_great_circle_keeps_the_length_and_ends_at_its_ends() -> None:
    first, second = torch.randn(2, 3, 16, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    second = second * (first.flatten(1).norm(dim=1) / second.flatten(1).norm(dim=1))[:, None, None]
    torch.testing.assert_close(great_circle(first, second, 0.0), first)
    torch.testing.assert_close(great_circle(first, second, 1.0), second)
    middle = great_circle(first, second, 0.5)
    torch.testing.assert_close(middle.flatten(1).norm(dim=1), first.flatten(1).norm(dim=1))
    with pytest.raises(ValueError, match="fraction 2"):
        great_circle(first, second, 2.0)


def test_the_great_circle_from_a_noise_to_itself_stays_there() -> None:
    """Where the angle is 0, and its sine with it."""
    noise = torch.randn(3, 16, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    # The angle is taken for 1.4e-3 at least: the length is off by an eighth of its square.
    torch.testing.assert_close(great_circle(noise, noise, 0.3), noise, rtol=1e-6, atol=0)


def test_the_density_of_a_gaussian() -> None:
    x = torch.tensor([[[0.0, 2.0]]], dtype=torch.float64)
    expected = -2 * math.log(2.0) - math.log(2 * math.pi) - 0.5
    np.testing.assert_allclose(gaussian_log_density(x, 2.0).item(), expected)
