"""A codec that is a variational autoencoder: the policy denoises a few numbers that say which plan it is.

This is latent diffusion (Rombach et al. 2022) over windows of actions. The autoencoder is trained before the policy and
then fixed. Plans are encoded as the mean of their posterior, each number of it scaled such that 98 % of the data lie
between -1 and 1.

Shape legend: B batch, H horizon, A action, L length and F features of the encoding.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from diffpolicy.codecs.autoencoder import Autoencoder
from diffpolicy.codecs.codec import DataArray, Windows
from diffpolicy.codecs.normalizer import BLOCK_ROWS, Normalizer, QuantilesConfig
from diffpolicy.system.schema import Range

COLLAPSED = 0.5  # a number of the latent says nothing if its mean's range over the data is smaller; the prior's is 8


@dataclass
class VaeConfig:
    """Settings of `VaeCodec`.

    Attributes:
        length, features: shape of the encoding; a U-Net halves the length.
        width, layers: hidden layers of the encoder and of the decoder.
        std: standard deviation of plans around the decoder's, of normalised actions. It says which details count.
        beta: weight of the KL divergence; 1 is the ELBO (Higgins et al. 2017).
        free_nats: mean divergence of each number of the latent that costs nothing, against collapse.
        anneal_steps: first steps, over which beta rises from 0 (Bowman et al. 2016).
        steps, batch_size, learning_rate: of Adam; the rate falls to 0 along a half cosine.
    """

    name: str = "vae"
    length: Annotated[int, Range(1, 4096)] = 4
    features: Annotated[int, Range(1, 4096)] = 4
    width: Annotated[int, Range(1, 16_384)] = 256
    layers: Annotated[int, Range(0, 64)] = 2
    std: Annotated[float, Range(above=0, most=10)] = 0.005
    beta: Annotated[float, Range(least=0, most=1e6)] = 1.0
    free_nats: Annotated[float, Range(least=0, most=100)] = 0.0
    anneal_steps: Annotated[int, Range(0, 1_000_000_000)] = 200
    steps: Annotated[int, Range(1, 1_000_000_000)] = 1000
    batch_size: Annotated[int, Range(1, 2**20)] = 256
    learning_rate: Annotated[float, Range(above=0, most=1)] = 3e-3


class VaeCodec(nn.Module):
    """Windows of actions [B, H, A] in physical units <-> encodings [B, L, F]. A `LearnedCodec`.

    It is not invertible, and no number of the encoding belongs to one waypoint: there is no metric and no density, and
    the past is part of every number.

    Args:
        settings: see `VaeConfig`.
        normalizer: of the actions, which the autoencoder sees normalised.
        horizon: H.
        action_dim: A.
    """

    is_invertible = False
    limits = None
    metric = None

    def __init__(self, settings: VaeConfig, normalizer: Normalizer, horizon: int, action_dim: int) -> None:
        super().__init__()
        self.settings, self.normalizer = settings, normalizer
        self._shape = settings.length, settings.features
        latents = settings.length * settings.features
        self.autoencoder = Autoencoder(
            horizon * action_dim, latents, settings.width, settings.layers, settings.std
        ).requires_grad_(False)
        self.scaling = Normalizer(latents, QuantilesConfig(range_eps=COLLAPSED))
        self._plan_shape = horizon, action_dim

    @property
    def is_fitted(self) -> bool:
        """Whether it has statistics and trained weights. Reading this copies them to the host."""
        return self.normalizer.is_fitted and self.scaling.is_fitted

    def encoded_shape(self, horizon: int) -> tuple[int, int]:
        """(L, F)."""
        return self._shape

    def fit(self, actions: DataArray) -> None:
        """Fit the normalisation of the actions [rows, A]; raises ValueError on unusable data. Then call `learn`."""
        self.normalizer.fit(actions)

    def learn(self, windows: Windows, generator: torch.Generator) -> None:
        """Train the autoencoder on windows [N, H, A] in physical units, then scale the encoding.

        It starts from the principal components of the windows.

        Raises:
            ValueError: training diverges, or every number of the latent has collapsed.
        """
        self.autoencoder.begin(*_moments(self.normalized(part).cpu() for part in _blocks(windows)))
        self.autoencoder.requires_grad_(True)
        try:
            with torch.enable_grad():
                self._train(windows, generator)
        finally:
            self.autoencoder.requires_grad_(False)
        with torch.no_grad():
            self.scaling.fit(torch.cat([self._mean(part).cpu() for part in _blocks(windows)]))
        if bool(self.scaling.is_constant.all()):
            raise ValueError(
                f"codec: all {len(self.scaling.scale)} numbers of the latent have collapsed, and say nothing about the "
                f"actions; lower codec.beta ({self.settings.beta:g}) or codec.std ({self.settings.std:g}), or set "
                "codec.free_nats"
            )

    def encode(self, actions: Tensor) -> Tensor:
        """[B, H, A] -> [B, L, F], the scaled mean of the posterior."""
        return self.scaling.encode(self._mean(actions)).unflatten(1, self._shape)

    def decode(self, encoded: Tensor) -> Tensor:
        """[B, L, F] -> [B, H, A], within the limits of the data if the normalisation has some."""
        with torch.autocast(encoded.device.type, enabled=False):
            plan = self.autoencoder.decode(self.scaling.decode(encoded.flatten(1))).unflatten(1, self._plan_shape)
        limits = self.normalizer.limits
        return self.normalizer.decode(plan if limits is None else plan.clamp(*limits))

    def log_determinant(self, horizon: int) -> None:
        """None: it is not invertible."""
        return

    def normalized(self, windows: Tensor) -> Tensor:
        """What the autoencoder sees of windows [B, H, A] in physical units: [B, H * A]."""
        return self.normalizer.encode(windows).flatten(1)

    def _mean(self, windows: Tensor) -> Tensor:
        with torch.autocast(windows.device.type, enabled=False):  # a latent in bfloat16 would move the plan
            return self.autoencoder.posterior(self.normalized(windows)).mean

    def _train(self, windows: Windows, generator: torch.Generator) -> None:
        own, latents = self.settings, len(self.scaling.scale)
        optimizer = torch.optim.Adam(self.autoencoder.parameters(), lr=own.learning_rate)
        for step in range(own.steps):
            optimizer.param_groups[0]["lr"] = own.learning_rate * 0.5 * (1.0 + math.cos(math.pi * step / own.steps))
            x = self.normalized(windows[torch.randint(len(windows), (own.batch_size,), generator=generator)])
            noise = torch.randn(len(x), latents, generator=generator).to(x)
            loss = self.autoencoder.loss(x, noise, annealed(own.beta, step, own.anneal_steps), own.free_nats)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if not bool(loss.isfinite()):
            raise ValueError(
                f"codec: the autoencoder's loss is {float(loss.detach())} after {own.steps} steps; lower "
                f"codec.learning_rate ({own.learning_rate:g})"
            )


def annealed(beta: float, step: int, anneal_steps: int) -> float:
    """The weight of the divergence at training step `step`, which rises linearly from 0 (Bowman et al. 2016)."""
    return beta * min(1.0, step / anneal_steps) if anneal_steps else beta


def _blocks(windows: Windows) -> Iterator[Tensor]:
    """All windows in order, in blocks."""
    return (windows[rows] for rows in torch.arange(len(windows)).split(BLOCK_ROWS))


def _moments(blocks: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean [D] and covariance [D, D] of the rows of all blocks [rows, D], in float64."""
    rows, total, products = 0, torch.zeros(()).double(), torch.zeros(()).double()
    for block in blocks:
        block = block.double()
        rows, total, products = rows + len(block), total + block.sum(0), products + block.mT @ block
    mean = total / rows
    return mean, products / rows - mean[:, None] * mean
