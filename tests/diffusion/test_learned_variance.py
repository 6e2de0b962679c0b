"""Learned variance on a mixture, whose posterior variance and density are known exactly."""

import math

import pytest
import torch
from mixture import IN_1D
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from torch.testing import assert_close
from traced import MODELS, compiled, recorded

from diffpolicy import DiffusionPolicy, PolicyConfig
from diffpolicy.diffusion.guidance import epsilon_scaling
from diffpolicy.diffusion.objectives.denoising import Denoising
from diffpolicy.diffusion.objectives.learned_variance import LearnedVariance
from diffpolicy.diffusion.objectives.objective import ConditionedNetwork
from diffpolicy.diffusion.parameterization import CLEAN
from diffpolicy.diffusion.reverse import Estimate, reverse
from diffpolicy.diffusion.samplers.ancestral import ddim, ddpm
from diffpolicy.diffusion.samplers.table import Row, rows_at
from diffpolicy.diffusion.schedules import cosine, vp
from diffpolicy.diffusion.spacing import trailing
from diffpolicy.networks.backbones.unet1d import UNet1dConfig
from diffpolicy.policy.clip import identity
from diffpolicy.policy.guides import guided
from diffpolicy.policy.objective_choices import build_objective
from diffpolicy.policy.sampler_choices import build_sampler, sampler_settings

SCHEDULE = cosine(20)
OBJECTIVE = LearnedVariance(Denoising(SCHEDULE, CLEAN), 1e-3).double()
ROWS = rows_at(SCHEDULE.levels)


def clean_variance(x: Tensor, row: Row) -> Tensor:
    """Var[clean | x] of the mixture in one dimension: within the components, and between them."""
    total = row.alpha**2 * IN_1D.std**2 + row.sigma**2
    within = IN_1D.std**2 * row.sigma**2 / total
    weights = torch.softmax(IN_1D._fit(x, row), dim=-1)
    centres = row.alpha * IN_1D.std**2 / total * x + row.sigma**2 / total * IN_1D.means.T
    mean = (weights * centres).sum(-1, keepdim=True)
    return within + (weights * (centres - mean).square()).sum(-1, keepdim=True)


def exact_fraction(x: Tensor, level: int) -> Tensor:
    """The fraction with which the step has the variance of x one level lower, given x."""
    bounds = OBJECTIVE.at(torch.tensor([level]))
    variance = bounds.posterior.exp() + bounds.gain**2 * clean_variance(x, ROWS[level])
    return (variance.log() - bounds.low) / bounds.width


def data(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    component = torch.multinomial(IN_1D.weights, count, replacement=True, generator=generator)
    spread = torch.randn(count, 1, generator=generator, dtype=torch.float64)
    return (IN_1D.means[component] + IN_1D.std * spread)[:, None]


def bound(clean: Tensor, fraction_at) -> float:
    """The mean of the evidence lower bound, in nats, with the exact clean estimate."""
    last, generator = ROWS[-1], torch.Generator().manual_seed(1)
    end = Normal(last.alpha * clean, last.sigma)
    total = -kl_divergence(end, Normal(torch.zeros_like(clean), 1.0)).mean()
    for level, row in enumerate(ROWS):
        x = row.alpha * clean + row.sigma * torch.randn(clean.shape, generator=generator, dtype=torch.float64)
        error = IN_1D.denoise(x, row) - clean
        total = total - OBJECTIVE.at(torch.tensor([level])).term(error, fraction_at(x, level)).mean()
    return float(total)


def test_the_exact_variance_gives_a_tighter_bound_than_either_fixed_one_and_stays_below_the_density() -> None:
    clean = data(4_000)
    density = float(IN_1D.log_density(clean, Row(1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0)).mean())
    learned = bound(clean, exact_fraction)
    posterior, beta = (bound(clean, lambda x, level, f=f: torch.full_like(x, f)) for f in (0.0, 1.0))
    assert learned < density + 0.03  # three standard errors of the estimate
    assert learned > beta + 0.05
    assert learned > posterior + 0.05


@pytest.mark.parametrize("level", [1, 10, 19])
def test_a_term_of_the_bound_is_the_divergence_of_the_two_gaussians(level: int) -> None:
    bounds, row, before = OBJECTIVE.at(torch.tensor([level])), ROWS[level], ROWS[level - 1]
    ratio = row.alpha / before.alpha
    beta = row.sigma**2 - ratio**2 * before.sigma**2
    tilde = before.sigma**2 / row.sigma**2 * beta
    error, fraction = torch.tensor(0.3).double(), torch.tensor(0.4).double()
    shift = before.alpha * beta / row.sigma**2 * error
    variance = math.exp(0.4 * math.log(beta) + 0.6 * math.log(tilde))
    expected = kl_divergence(Normal(0.0, math.sqrt(tilde)), Normal(shift, math.sqrt(variance)))
    assert_close(
        bounds.term(error, fraction).squeeze(), expected, rtol=1e-3, atol=0
    )  # float32 columns of a small difference


def test_the_first_term_is_the_density_of_the_decoder() -> None:
    bounds = OBJECTIVE.at(torch.tensor([0]))
    error, fraction = torch.tensor(0.02).double(), torch.tensor(0.4).double()
    deviation = (0.5 * bounds.log_variance(fraction)).exp()
    expected = -Normal(0.0, deviation).log_prob(error)
    assert_close(bounds.term(error, fraction), expected, rtol=1e-5, atol=0)  # the columns are float32


def test_only_the_variance_gets_the_gradient_of_the_bound_and_the_exact_one_has_none() -> None:
    clean = data(20_000).float()
    objective = LearnedVariance(Denoising(SCHEDULE, CLEAN), 1.0)
    batch = objective.draw(clean, torch.Generator().manual_seed(2))
    level = objective.base.table.at(batch.level)
    x = level.noisy(batch.clean, batch.noise).double()
    exact = torch.empty(*x.shape[:2], 2)
    for number, row in enumerate(ROWS):
        at = batch.level == number
        exact[at] = torch.cat([IN_1D.denoise(x[at], row), 2.0 * exact_fraction(x[at], number) - 1.0], dim=-1).float()
    found = []
    for shift in (0.0, 0.3):
        offsets = torch.tensor([0.0, shift], requires_grad=True)
        network = ConditionedNetwork(lambda x, time, offsets=offsets: exact + offsets, [])
        found.append(torch.autograd.grad(objective.loss(network, batch), offsets)[0])
    assert abs(float(found[0][0])) < 0.03, "the estimate is exact, up to chance"
    assert_close(found[0][0], found[1][0], rtol=0, atol=1e-6)  # and gets no gradient of the bound
    assert abs(float(found[0][1])) < 0.1 * float(found[1][1])


def denoise(x: Tensor, row: Row) -> Tensor | Estimate:
    clean = IN_1D.denoise(x, row)
    return Estimate(clean, torch.full_like(x, 0.25)) if row.has_spread else clean


def test_a_learned_step_adds_noise_between_those_of_the_two_fixed_variances() -> None:
    now = trailing(vp(1000), 10)
    learned, posterior, beta = (ddpm(now, variance) for variance in ("learned", "posterior", "beta"))
    for mine, low, high in zip(learned.rows, posterior.rows, beta.rows, strict=True):
        assert (mine.a, mine.b, mine.s) == (low.a, low.b, low.s)
        assert_close(mine.s * math.exp(mine.spread), high.s, rtol=1e-12, atol=0)
    noise = torch.randn(11, 4, 1, 1, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found = reverse(denoise, learned, noise, identity).clean
    scaled = noise.clone()
    for step, row in enumerate(learned.rows[:-1]):
        scaled[step + 1] *= math.exp(0.25 * row.spread)
    assert_close(found, reverse(IN_1D.denoise, posterior, scaled, identity).clean, rtol=0, atol=1e-12)


def test_ddim_ignores_the_variance_and_a_guide_keeps_it() -> None:
    objective = build_objective("learned_variance")
    seen = objective.denoiser(lambda x, time, stop=None: torch.cat([0.5 * x, 0.0 * x + 0.2], dim=-1))
    x = torch.randn(3, 4, 2)
    uniform = ddim(objective.schedule.levels[[50, 20]]).rows[0]
    assert_close(seen(x, uniform), 0.5 * x)
    spread = build_sampler(objective.schedule, objective.sampler, 5).rows[1]
    steered = guided(epsilon_scaling(1.1), seen, None)(x, spread)
    assert_close(steered.fraction, torch.full_like(x, 0.6))
    assert (steered.clean - 0.5 * x).abs().max() > 1e-3


def test_a_plain_denoiser_refuses_a_learned_variance_by_what_to_give_instead() -> None:
    settings = sampler_settings({"name": "ddpm", "variance": "learned"})
    with pytest.raises(ValueError, match=r"needs a policy trained with diffusion=learned_variance; give sampler\."):
        Denoising(SCHEDULE, CLEAN).check_sampler(settings)
    build_objective("learned_variance").check_sampler(settings)


def test_a_policy_with_it_trains_samples_and_is_told_that_its_first_step_has_a_spread() -> None:
    torch.manual_seed(0)
    model = UNet1dConfig(widths=[8, 16], time_embedding_dim=8)
    policy = DiffusionPolicy(PolicyConfig({"state": 3}, 2, model=model, diffusion="learned_variance"))
    policy.fit({"state": torch.randn(50, 3)}, torch.randn(50, 2))
    seen, actions = {"state": torch.randn(4, 2, 3)}, torch.randn(4, 16, 2)
    policy.loss(seen, actions, torch.Generator().manual_seed(0)).backward()
    head = list(policy.network.parameters())[-1].grad
    assert head is not None
    assert (head.flatten() != 0).all(), "of the estimate and of the variance"
    generators = [torch.Generator().manual_seed(seed) for seed in range(4)]
    assert policy.sampler().rows[0].has_spread
    assert policy.predict_action_chunk(seen, generators).plan.shape == (4, 16, 2)
    assert policy.predict_action_chunk(seen, generators, policy.sampler("ddim", 3)).plan.isfinite().all()


def test_its_loop_can_be_captured(traced) -> None:
    torch.manual_seed(0)
    plain = DiffusionPolicy(PolicyConfig({"state": 3}, 2, model=MODELS["unet1d"], diffusion="learned_variance"))
    plain.fit({"state": torch.randn(50, 3)}, torch.randn(50, 2))
    replaying, table = compiled(plain.eval()), plain.sampler(steps=3)
    for seed in range(2):
        seen = {"state": torch.randn(1, 2, 3)}
        plans = [
            one.predict_action_chunk(seen, [torch.Generator().manual_seed(seed)], table).plan
            for one in (replaying, plain)
        ]
        assert_close(*plans, rtol=0, atol=0)
    assert recorded(replaying) == 1
