"""The normal distribution that an encoder of a variational autoencoder returns (Kingma and Welling 2014)."""

from typing import NamedTuple

from torch import Tensor

LOG_STD = 8.0  # the standard deviation lies between exp(-8) and exp(8)


class Posterior(NamedTuple):
    """Normal distributions of latents: mean and log of the standard deviation, both [B, ...]."""

    mean: Tensor
    log_std: Tensor

    @classmethod
    def of(cls, mean: Tensor, log_std: Tensor) -> "Posterior":
        """The distributions that a network's two outputs stand for; the spread is limited to exp(-8) and exp(8)."""
        return cls(mean, log_std.clamp(-LOG_STD, LOG_STD))

    def at(self, noise: Tensor) -> Tensor:
        """The latent of a standard normal `noise`, like it."""
        return self.mean + self.log_std.exp() * noise

    def divergence(self) -> Tensor:
        """The KL divergence from the standard normal distribution, in nats, for each number [B, ...]."""
        return 0.5 * (self.mean.square() + (2.0 * self.log_std).exp() - 1.0) - self.log_std
