"""Baselines without a chain of levels, where their optimum, density or bound is known."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal
from torch.testing import assert_close

from diffpolicy.diffusion.objectives.mixture_density import Mixture, MixtureDensity
from diffpolicy.diffusion.objectives.objective import ConditionedNetwork
from diffpolicy.diffusion.objectives.regression import Regression
from diffpolicy.diffusion.objectives.variational import Latent, Variational
from diffpolicy.diffusion.reverse import reverse
from diffpolicy.diffusion.samplers.table import StepTable
from diffpolicy.policy.clip import identity
from diffpolicy.policy.objective_choices import build_objective
from diffpolicy.policy.sampler_choices import build_sampler

F64 = torch.float64


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def table_of(objective: Any, choice: Any) -> StepTable:
    table = build_sampler(objective.schedule, choice)
    assert isinstance(table, StepTable)
    return table


class Affine(nn.Module):
    """offset + slope * x, whatever the time."""

    def __init__(self, offset: float, slope: float) -> None:
        super().__init__()
        self.offset, self.slope = (nn.Parameter(torch.tensor(one, dtype=F64)) for one in (offset, slope))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.offset + self.slope * x


def slopes(objective: Any, network: Affine, clean: Tensor) -> list[float]:
    """The gradient of the loss by offset and slope."""
    batch = objective.double().draw(clean, torch.Generator().manual_seed(0))
    loss = objective.loss(ConditionedNetwork(network, []), batch, 0)
    found = torch.autograd.grad(loss, [network.offset, network.slope], allow_unused=True)
    return [0.0 if one is None else float(one) for one in found]


@pytest.mark.parametrize(("loss", "best"), [("mse", 1.3), ("l1", 1.0)])
def test_regression_is_best_at_the_mean_or_the_median_and_sees_nothing(loss: str, best: float) -> None:
    clean = torch.tensor([0.0, 1.0, 2.9], dtype=F64)[:, None, None].expand(-1, 4, 2)
    objective = build_objective({"name": "regression", "loss": loss})
    of = {offset: slopes(objective, Affine(offset, 0.3), clean) for offset in (best - 0.2, best, best + 0.2)}
    assert of[best - 0.2][0] < -0.1
    assert of[best + 0.2][0] > 0.1
    assert_close(of[best][0], 0.0, rtol=0, atol=1e-6)  # the table of levels is float32
    assert all(slope == 0.0 for _, slope in of.values()), "x does not count"


def test_the_second_regression_is_best_at_the_posterior_mean_given_the_noisy_plan() -> None:
    """For plans N(m, v), that is m + v / (v + noise^2) * (x - m)."""
    mean, std, noise = 0.4, 0.2, 0.1
    clean = mean + std * seeded(40_000, 1, 1)
    gain = std**2 / (std**2 + noise**2)
    objective = build_objective({"name": "two_step_regression", "noise": noise})
    at = {slope: slopes(objective, Affine(mean * (1.0 - slope), slope), clean)[1] for slope in (0.6, gain, 1.0)}
    assert at[0.6] < -0.005
    assert at[1.0] > 0.005
    assert abs(at[gain]) < 0.001, "chance"


def test_direct_calls_the_network_on_zeros_and_then_on_what_it_returned() -> None:
    objective = Regression("two_step_regression", "mse", 0.1)
    table, seen = table_of(objective, objective.sampler), []

    def network(x: Tensor, time: float, stop: None = None) -> Tensor:
        seen.append((x.clone(), time))
        return 0.5 * x + 3.0

    found = reverse(objective.denoiser(network), table, seeded(3, 2, 4, 1), identity).clean
    assert_close(found, torch.full_like(found, 4.5), rtol=0, atol=0)
    assert [float(x.abs().max()) for x, _ in seen] == [0.0, 3.0]
    assert [time for _, time in seen] == [1000.0, 100.0]
    one = reverse(objective.denoiser(network), table_of(objective, "direct"), seeded(2, 2, 4, 1), identity)
    assert_close(one.clean, torch.full_like(one.clean, 3.0), rtol=0, atol=0)


def test_direct_starts_from_noise_where_it_is_asked_to() -> None:
    noise = seeded(2, 2, 4, 1)
    table = table_of(build_objective("variational"), {"name": "direct", "start": 1.0})
    assert_close(reverse(lambda x, row: 2.0 * x, table, noise, identity).clean, 2.0 * noise[0], rtol=0, atol=0)


def mixture(batch: int = 2, dtype: torch.dtype = F64) -> Mixture:
    """Three components over plans of 3 waypoints with 2 features."""
    log_weight = seeded(batch, 3, seed=1).log_softmax(dim=1)
    mean, std = 3.0 * seeded(batch, 3, 3, 2, seed=2), 0.1 + seeded(batch, 3, 3, 2, seed=3).abs()
    return Mixture(*(one.to(dtype) for one in (log_weight, mean, std)))


def test_the_density_is_that_of_the_mixture() -> None:
    one, plan = mixture(), seeded(2, 3, 2, seed=4)
    known = MixtureSameFamily(Categorical(logits=one.log_weight), Independent(Normal(one.mean, one.std), 2))
    assert_close(one.log_density(plan), known.log_prob(plan), rtol=0, atol=1e-10)  # float64


def test_the_loss_is_the_negative_log_likelihood_of_what_the_output_describes() -> None:
    objective = MixtureDensity(2, 0.05, 0.0)
    clean = seeded(5, 3, 2)
    output = seeded(5, 3, 12, seed=7)
    loss = objective.loss(ConditionedNetwork(lambda x, time: output, []), clean, 0)
    mean, spread = output[..., :4], 0.05 + torch.log1p(output[..., 4:8].exp())
    terms = [Normal(mean[..., k : k + 2], spread[..., k : k + 2]).log_prob(clean).sum((1, 2)) for k in (0, 2)]
    logits = torch.stack([output[..., k : k + 2].mean((1, 2)) for k in (8, 10)], dim=1)
    expected = -torch.logsumexp(torch.stack(terms, dim=1) + logits.log_softmax(dim=1), dim=1).mean() / 6
    assert_close(loss, expected, rtol=0, atol=1e-10)  # float64


def test_the_likelihood_of_a_plan_far_from_all_components_is_finite_and_points_back() -> None:
    one = mixture(dtype=torch.float32)
    plan = torch.full((2, 3, 2), 1e4, requires_grad=True)
    density = one.log_density(plan)
    (slope,) = torch.autograd.grad(density.sum(), plan)
    assert density.isfinite().all()
    assert (slope < 0.0).all()
    assert slope.isfinite().all()


def test_samples_have_the_weights_means_and_standard_deviations_of_the_mixture() -> None:
    count = 100_000
    one = Mixture(*(part[:1].expand(count, *part.shape[1:]) for part in mixture(1)))
    noise = seeded(count, 3, 2, seed=9)
    chosen = one.sample(noise, 0.0)
    samples = one.sample(noise, 1.0)
    for k in range(3):
        is_here = (chosen == one.mean[0, k]).all(dim=2).all(dim=1)
        assert abs(float(is_here.double().mean()) - float(one.log_weight[0, k].exp())) < 0.01  # 6 standard errors
        fresh = (samples[is_here] - one.mean[0, k]) / one.std[0, k]
        assert_close(fresh.mean(0), torch.zeros(3, 2, dtype=F64), rtol=0, atol=0.04)  # of 20,000 and more
        covariance = fresh.flatten(1).T.cov()
        assert_close(covariance, torch.eye(6, dtype=F64), rtol=0, atol=0.05)


def test_a_component_without_weight_is_not_chosen_and_noise_at_the_ends_is_taken() -> None:
    log_weight = torch.tensor([[-math.inf, 0.0, -math.inf]])
    one = Mixture(log_weight, torch.tensor([1.0, 2.0, 3.0])[None, :, None, None], torch.ones(1, 3, 1, 1))
    for value in (-40.0, 0.0, 40.0):
        found = one.sample(torch.full((1, 1, 1), value), 1.0)
        assert found.isfinite().all()
        assert float(one.sample(torch.full((1, 1, 1), value), 0.0)) == 2.0


GAIN, STD = 0.8, 0.5  # plan = GAIN * z + STD * noise, so that plans are N(0, GAIN^2 + STD^2)
EVIDENCE = GAIN**2 + STD**2


class TwoOutputs(nn.Module):
    """slope * x, and a constant."""

    def __init__(self, slope: float, constant: float) -> None:
        super().__init__()
        self.slope, self.constant = slope, constant

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return torch.cat([self.slope * x, torch.full_like(x, self.constant)], dim=-1)


def elbo_of(slope: float, std: float, clean: Tensor) -> Tensor:
    """The exact bound, quadratic in the noise: the mean over noise of +1 and -1 is that over all noise."""
    objective = Variational(1.0, STD, 0.0)
    objective.posterior = TwoOutputs(slope, math.log(std))
    network = ConditionedNetwork(TwoOutputs(GAIN, 0.0), [])
    bounds = [objective.elbo(network, Latent(clean, torch.full_like(clean, sign))) for sign in (1.0, -1.0)]
    return (bounds[0] + bounds[1]) / 2.0


def test_the_bound_is_the_log_likelihood_at_the_exact_posterior_and_below_it_elsewhere() -> None:
    clean = seeded(6, 3, 2)
    exact = Normal(torch.zeros((), dtype=F64), EVIDENCE**0.5).log_prob(clean).sum(dim=(1, 2))
    slope, std = GAIN / EVIDENCE, STD / EVIDENCE**0.5
    assert_close(elbo_of(slope, std, clean), exact, rtol=0, atol=1e-10)  # float64
    for wrong in ((0.7 * slope, std), (slope, 0.7 * std), (1.2 * slope, 1.3 * std), (0.0, 1.0)):
        assert (elbo_of(*wrong, clean) < exact).all()


def test_the_loss_is_the_negative_bound_up_to_a_factor_and_a_constant() -> None:
    clean, noise = seeded(6, 3, 2), seeded(6, 3, 2, seed=1)
    differences = []
    for slope in (0.2, 0.9):
        objective = Variational(1.0, STD, 0.0)
        objective.posterior = TwoOutputs(slope, -0.3)
        network, batch = ConditionedNetwork(TwoOutputs(GAIN, 0.0), []), Latent(clean, noise)
        loss = objective.loss(network, batch, 0) / (2.0 * STD**2)
        differences.append(loss + objective.elbo(network, batch).mean() / 6.0)
    constant = torch.tensor(-math.log(STD) - 0.5 * math.log(2.0 * math.pi), dtype=F64)
    assert_close(torch.stack(differences), constant.expand(2), rtol=0, atol=1e-10)  # float64


def test_divergence_below_the_free_nats_costs_nothing() -> None:
    clean, noise = seeded(6, 3, 2), seeded(6, 3, 2, seed=1)

    def slope_of_log_std(free_nats: float) -> float:
        objective = Variational(1.0, STD, free_nats)
        log_std = torch.tensor(-0.5, dtype=F64, requires_grad=True)  # 0.18 nats
        objective.posterior = lambda x, time: torch.cat([0.0 * x, log_std.expand_as(x)], dim=-1)
        network = ConditionedNetwork(TwoOutputs(0.0, 0.0), [])  # takes no notice of the latent
        return float(torch.autograd.grad(objective.loss(network, Latent(clean, noise), 0), log_std)[0])

    assert slope_of_log_std(0.1) < -0.1
    assert slope_of_log_std(0.3) == 0.0
