"""The codec that is a variational autoencoder: its bound, its training and its collapse are those of exact answers."""

import math

import pytest
import torch
from one_case import over
from torch import Tensor
from torch.testing import assert_close

from diffpolicy.codecs.autoencoder import Autoencoder
from diffpolicy.codecs.normalizer import Normalizer
from diffpolicy.codecs.vae import VaeCodec, VaeConfig, annealed

STD = 0.3
VARIANCES = torch.tensor([1.0, 0.5, 0.2, 0.01], dtype=torch.float64)  # of the data, along the columns of AXES
AXES = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).Q
MEAN = torch.tensor([0.2, -0.1, 0.0, 0.4], dtype=torch.float64)


def probabilistic_pca(latents: int = 2) -> tuple[Autoencoder, torch.distributions.MultivariateNormal]:
    """A linear decoder with its exact posterior (Tipping and Bishop 1999, eq. 12.6 and 12.7), and its density."""
    loadings = AXES[:, :latents] * (VARIANCES[:latents] - STD**2).sqrt()
    spread = loadings.square().sum(0) + STD**2  # M, which is diagonal
    model = Autoencoder(4, latents, 8, 0, STD).double().requires_grad_(False)
    encoder, decoder = model.encoder.affine, model.decoder.affine
    decoder.weight.copy_(loadings)
    decoder.bias.copy_(MEAN)
    to_mean = loadings.mT / spread[:, None]
    encoder.weight.copy_(torch.cat([to_mean, torch.zeros(latents, 4)]))
    encoder.bias.copy_(torch.cat([-to_mean @ MEAN, 0.5 * torch.log(STD**2 / spread)]))
    covariance = loadings @ loadings.mT + STD**2 * torch.eye(4, dtype=torch.float64)
    return model, torch.distributions.MultivariateNormal(MEAN, covariance)


def expected_elbo(model: Autoencoder, x: Tensor, latents: int = 2) -> Tensor:
    """The bound without the noise of an estimate: these draws have the moments of the normal distribution, and the
    error of a linear decoder is quadratic."""
    draws = math.sqrt(latents) * torch.cat([torch.eye(latents), -torch.eye(latents)]).double()
    return torch.stack([model.elbo(x, one.expand(len(x), -1)) for one in draws]).mean(0)


def test_at_the_exact_posterior_the_bound_is_the_log_likelihood() -> None:
    model, density = probabilistic_pca()
    x = density.sample((50,))
    assert_close(expected_elbo(model, x), density.log_prob(x), rtol=0, atol=1e-10)  # rounding in float64


def test_at_any_other_posterior_the_bound_is_lower() -> None:
    model, density = probabilistic_pca()
    x = density.sample((50,))
    for change in (0.1, -0.1):
        model.encoder.affine.bias.add_(change)
        assert bool((expected_elbo(model, x) < density.log_prob(x) - 1e-3).all())
        model.encoder.affine.bias.sub_(change)


def test_the_loss_is_the_bound_up_to_a_factor_and_a_constant() -> None:
    model, density = probabilistic_pca()
    x, noise = density.sample((50,)), torch.randn(50, 2, dtype=torch.float64)
    constant = 4 * (math.log(STD) + 0.5 * math.log(2.0 * math.pi))
    assert_close(4 * model.loss(x, noise) / (2.0 * STD**2) + constant, -model.elbo(x, noise).mean())


def test_free_nats_cost_nothing_and_pull_no_further() -> None:
    model, density = probabilistic_pca()
    x, noise = density.sample((50,)), torch.randn(50, 2, dtype=torch.float64)
    divergence = model.posterior(x).divergence().mean(0)
    between = float(divergence.mean())
    assert divergence.min() < between < divergence.max()
    paid = float((model.loss(x, noise, free_nats=between) - model.loss(x, noise, beta=0.0)) * 4 / (2.0 * STD**2))
    assert paid == pytest.approx(between + float(divergence.max()))
    bias = model.encoder.affine.bias.requires_grad_()
    means = model.loss(x, noise, free_nats=100.0), model.loss(x, noise, beta=0.0)
    assert_close(*(torch.autograd.grad(one, bias)[0] for one in means))


def test_the_weight_of_the_divergence_rises_to_beta() -> None:
    assert [annealed(2.0, step, 4) for step in range(6)] == [0.0, 0.5, 1.0, 1.5, 2.0, 2.0]
    assert annealed(2.0, 0, 0) == 2.0


def gaussian_windows(count: int = 4096) -> Tensor:
    """Windows [N, 2, 2] of Gaussian actions with exactly the mean and the variances above."""
    white = torch.randn(count, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    white = white - white.mean(0)
    white = white @ torch.linalg.inv(torch.linalg.cholesky(white.mT @ white / count)).mT
    return (MEAN + white * VARIANCES.sqrt() @ AXES.mT).unflatten(1, (2, 2)).float()


def learned(windows: Tensor, **own: object) -> VaeCodec:
    torch.manual_seed(0)
    given = {"length": 2, "features": 2, "layers": 0, "std": STD, "anneal_steps": 50, "steps": 300, **own}
    codec = VaeCodec(VaeConfig(learning_rate=3e-2, batch_size=1024, **given), Normalizer(2, "none"), 2, 2)
    codec.fit(windows.flatten(0, 1))
    codec.learn(windows, torch.Generator().manual_seed(0))
    return codec


@over("beta, kept", [(1.0, 3), (4.0, 2), (9.0, 1)])
def test_numbers_collapse_whose_variance_is_below_beta_times_that_of_the_decoder(beta: float, kept: int) -> None:
    """The best affine autoencoder is probabilistic PCA with noise of variance beta std^2 (Lucas et al. 2019)."""
    assert int(VARIANCES.gt(beta * STD**2).sum()) == kept
    codec = learned(gaussian_windows(), beta=beta)
    assert int((~codec.scaling.is_constant).sum()) == kept
    x = codec.normalized(gaussian_windows())
    found = codec.autoencoder.posterior(x).divergence().mean(0).sort(descending=True).values
    expected = 0.5 * torch.log(VARIANCES[:kept] / (beta * STD**2))
    assert_close(found[:kept].double(), expected, rtol=0, atol=0.05)  # the noise of Adam's steps
    assert bool((found[kept:] < 0.01).all())


def test_free_nats_keep_a_number_that_would_collapse() -> None:
    found = learned(gaussian_windows(), beta=9.0, free_nats=0.5)
    divergence = found.autoencoder.posterior(found.normalized(gaussian_windows())).divergence().mean(0)
    assert bool((divergence > 0.45).all())


def test_a_latent_that_has_collapsed_altogether_is_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match=r"all 4 numbers of the latent have collapsed.*lower codec.beta \(1000\)"):
        learned(gaussian_windows(), beta=1000.0)


def test_training_that_diverges_is_refused() -> None:
    windows = gaussian_windows()
    windows[:, 0, 0] *= 1e30
    with pytest.raises(ValueError, match=r"the autoencoder's loss is (nan|inf) after 50 steps; lower codec.learning"):
        learned(windows, steps=50)


def test_the_same_seed_trains_the_same_codec_and_leaves_it_fixed() -> None:
    first, second = (learned(gaussian_windows(), steps=20) for _ in range(2))
    found = second.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in first.state_dict().items())
    assert not any(parameter.requires_grad for parameter in first.parameters())


def test_curves_are_encoded_by_fewer_numbers_than_an_affine_map_needs() -> None:
    angle = torch.rand(4096, generator=torch.Generator().manual_seed(2)) * 3.0
    windows = torch.stack([angle.cos(), angle.sin(), (2 * angle).cos(), (2 * angle).sin()], dim=1).unflatten(1, (2, 2))

    def error(**own: object) -> float:
        codec = learned(windows, length=1, features=1, std=0.05, **own)
        return float((codec.decode(codec.encode(windows)) - windows).square().mean().sqrt())

    assert error(layers=2, width=64) < 0.3 * error(layers=0)


def test_plans_stay_within_the_limits_of_the_data() -> None:
    windows = gaussian_windows()
    torch.manual_seed(0)
    codec = VaeCodec(VaeConfig(length=2, features=2, layers=0, steps=50, std=STD), Normalizer(2), 2, 2)
    codec.fit(windows.flatten(0, 1))
    codec.learn(windows, torch.Generator().manual_seed(0))
    plans = codec.decode(100.0 * torch.randn(64, 2, 2))
    low, high = windows.flatten(0, 1).amin(0), windows.flatten(0, 1).amax(0)
    assert bool(((plans >= low - 1e-5) & (plans <= high + 1e-5)).all())
