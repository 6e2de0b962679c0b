"""A `UNet1d` at known moments, for export: what the times add to FiLM is a constant, the condition's part one product.

Shape legend: B batch, H horizon, A action, D condition, R moments, F features of all FiLM layers.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffpolicy.networks.backbones.unet1d import UNet1d
from diffpolicy.networks.backbones.unet1d_unrolled import residual_blocks
from diffpolicy.networks.protocols import Moment, as_tensors


class UNet1dAtTimes(nn.Module):
    """The same function as `network` at these moments, with fewer operations in each evaluation."""

    of_times: Tensor  # [R, F]
    of_condition: Tensor  # [F, D]

    def __init__(self, network: UNet1d, known: Sequence[Moment]) -> None:
        super().__init__()
        self.network: Any = network
        self._place = {(one.time, one.stop): place for place, one in enumerate(known)}
        layers, split = (
            [block.film[1] for block in residual_blocks(network)],
            self.network.time_encoder[-1].out_features,
        )
        with torch.no_grad():
            embedded = F.mish(network.embedded_time(*as_tensors(known, layers[0].weight)))
            of_times = [F.linear(embedded, one.weight[:, :split], one.bias) for one in layers]
            self.register_buffer("of_times", torch.cat(of_times, dim=1))
            self.register_buffer("of_condition", torch.cat([one.weight[:, split:] for one in layers]))

    def films(self, vector: Tensor) -> list[Tensor]:
        """The scales and biases of all blocks at all moments, given the condition [B, D]: each [B, channels, 1].

        They are taken apart in one operation, because each costs as much as its arithmetic in a network of this size.
        """
        all_of_them = F.linear(F.mish(vector), self.of_condition)[:, None] + self.of_times  # [B, R, F]
        return list(all_of_them.flatten(1)[..., None].split(self._sizes() * len(self.of_times), dim=1))

    def forward(self, x: Tensor, time: float, stop: float | None, films: Sequence[Tensor]) -> Tensor:
        """x [B, H, A], one of the moments and `films` -> [B, H, A]."""
        count = len(self._sizes())
        film = iter(films[count * self._place[time, stop] :][:count])
        x = x.transpose(1, 2)
        skips: list[Tensor] = []
        for level, pair in enumerate(self.network.down):
            x = _pair(x, pair, film)
            skips.append(x)
            if level < len(self.network.shrink):
                x = self.network.shrink[level](x)
        x = _pair(x, self.network.middle, film)
        for pair, grow in zip(self.network.up, self.network.grow, strict=True):
            x = grow(_pair(torch.cat([x, skips.pop()], dim=1), pair, film))
        return self.network.head(x).transpose(1, 2)

    def _sizes(self) -> list[int]:
        """The channels of the scale, if there is one, and of the bias of every block, in the order of their use."""
        blocks = residual_blocks(self.network)
        return [block.first[0].out_channels for block in blocks for _ in range(1 + block.film_scale)]


def _pair(x: Tensor, pair: Any, film: Iterator[Tensor]) -> Tensor:
    for block in (pair.first, pair.second):
        hidden, scale = block.first(x), next(film) if block.film_scale else None
        hidden = hidden + next(film) if scale is None else torch.addcmul(next(film), hidden, scale)
        x = block.second(hidden) + block.residual(x)
    return x
