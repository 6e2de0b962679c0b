"""The time at which a step ends, for networks that are trained to cross the interval from a level to another."""

from torch import Tensor, nn

from diffpolicy.networks.layers.blocks import SinusoidalEmbedding


class StopEmbedding(nn.Sequential):
    """Embeds a stop time, to be added to the embedded time of the level: [...] -> [..., dim].

    It is zero at first, so that a network which starts from the weights of a denoiser starts as that denoiser.
    """

    def __init__(self, dim: int) -> None:
        last = nn.Linear(4 * dim, dim)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        super().__init__(SinusoidalEmbedding(dim), nn.Linear(dim, 4 * dim), nn.Mish(), last)


def with_stop(embedded: Tensor, embedding: nn.Module | None, stop: Tensor | None) -> Tensor:
    """The embedded time [..., dim] with the embedded `stop` [...] added, if there is one.

    Raises:
        ValueError: there is a stop time, and the network was not built for one.
    """
    if stop is None:
        return embedded
    if embedding is None:
        raise ValueError("network: a stop time is given, but the network was not built to see one")
    return embedded + embedding(stop).to(embedded)
