"""A variational autoencoder of vectors (Kingma and Welling 2014): its networks, its loss and its bound.

    log p(x) >= E_q[log N(x; decoder(z), std^2)] - KL(q(z | x) || N(0, 1))                               (the ELBO)

Shape legend: B batch, D numbers of a vector, Z numbers of a latent.
"""

import math

import torch
from torch import Tensor, nn

from diffpolicy.system.posterior import Posterior


class Autoencoder(nn.Module):
    """Two networks: x [B, D] -> a posterior of latents [B, Z], and a latent -> x.

    Both see x in its principal components, scaled to variance 1, so that small details are learned as fast as large
    ones. Without hidden layers both maps are affine, and the best one is probabilistic PCA (Lucas et al. 2019).

    Args:
        size: D.
        latents: Z.
        width: of the hidden layers.
        layers: hidden layers of each network.
        std: standard deviation of x around the decoder's.
    """

    center: Tensor  # [D]
    axes: Tensor  # [D, D], a principal component in each column
    scale: Tensor  # [D], their standard deviations

    def __init__(self, size: int, latents: int, width: int, layers: int, std: float) -> None:
        super().__init__()
        self.encoder = _Perceptron(size, 2 * latents, width, layers)
        self.decoder = _Perceptron(latents, size, width, layers)
        self.std = std
        self.register_buffer("center", torch.zeros(size))
        self.register_buffer("axes", torch.eye(size))
        self.register_buffer("scale", torch.ones(size))

    @torch.no_grad()
    def begin(self, mean: Tensor, covariance: Tensor) -> None:
        """Take the principal components of the data, and let the latents begin as the first of them.

        Args:
            mean: of the data, float64 [D].
            covariance: of the data, float64 [D, D].
        """
        variance, axes = torch.linalg.eigh(covariance)
        scale = variance.flip(0).clamp(min=(1e-3 * self.std) ** 2).sqrt()
        for own, value in ((self.center, mean), (self.axes, axes.flip(1)), (self.scale, scale)):
            own.copy_(value)
        encoder, decoder = self.encoder.affine, self.decoder.affine
        latents = decoder.in_features
        count = min(latents, len(mean))
        for part in (encoder.weight[:count], encoder.weight[latents:], encoder.bias, decoder.weight, decoder.bias):
            part.zero_()
        encoder.weight[:count, :count].fill_diagonal_(1.0)
        decoder.weight[:count, :count].fill_diagonal_(1.0)
        encoder.bias[latents : latents + count] = -0.5 * torch.log1p(self.scale[:count].square() / self.std**2)

    def posterior(self, x: Tensor) -> Posterior:
        """q(z | x), mean and log of the standard deviation [B, Z]."""
        return Posterior.of(*self.encoder((x - self.center) @ self.axes / self.scale).chunk(2, dim=1))

    def decode(self, latent: Tensor) -> Tensor:
        """x [B, D] for latents [B, Z]."""
        return self.center + (self.decoder(latent) * self.scale) @ self.axes.transpose(0, 1)  # ONNX knows no mT

    def loss(self, x: Tensor, noise: Tensor, beta: float = 1.0, free_nats: float = 0.0) -> Tensor:
        """The squared error plus 2 std^2 beta times the divergence, per number of x, a scalar.

        For beta 1 without free nats this is the negative ELBO, up to a factor and a constant.

        Args:
            x: [B, D].
            noise: standard normal [B, Z].
            beta: weight of the divergence (Higgins et al. 2017).
            free_nats: mean divergence of each number of the latent that costs nothing (Kingma et al. 2016, eq. 15).
        """
        error, divergence = self._parts(x, noise)
        paid = divergence.mean(dim=0).clamp(min=free_nats).sum()
        return (error.sum(dim=1).mean() + 2.0 * self.std**2 * beta * paid) / x.shape[1]

    def elbo(self, x: Tensor, noise: Tensor) -> Tensor:
        """The evidence lower bound of log p(x) in nats [B], estimated with one latent for each x."""
        error, divergence = self._parts(x, noise)
        log_density = -0.5 * error / self.std**2 - math.log(self.std) - 0.5 * math.log(2.0 * math.pi)
        return log_density.sum(dim=1) - divergence.sum(dim=1)

    def _parts(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The squared error of each number of x [B, D], and the divergence of each number of the latent [B, Z]."""
        posterior = self.posterior(x)
        return (self.decode(posterior.at(noise)) - x).square(), posterior.divergence()


class _Perceptron(nn.Module):
    """An affine map plus, with hidden layers, a perceptron that begins at 0: fine details need no curves."""

    def __init__(self, size_in: int, size_out: int, width: int, layers: int) -> None:
        super().__init__()
        self.affine = nn.Linear(size_in, size_out)
        hidden: list[nn.Module] = []
        for layer in range(layers):
            hidden += [nn.Linear(width if layer else size_in, width), nn.Mish()]
        self.curved = nn.Sequential(*hidden, nn.Linear(width, size_out)) if layers else None
        if self.curved is not None:
            nn.init.zeros_(self.curved[-1].weight)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Tensor) -> Tensor:
        return self.affine(x) if self.curved is None else self.affine(x) + self.curved(x)
