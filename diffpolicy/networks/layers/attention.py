"""Multi-head attention, and the network between two attentions (Vaswani et al. 2017, section 3).

Shape legend: B batch, T tokens that look, S tokens that are looked at, E features of a token.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head attention, of tokens to themselves or to others. The weights are those of nn.MultiheadAttention.

    Args:
        width: E, a multiple of `heads`.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self._heads, self._width = heads, width
        self.into = nn.Linear(width, 3 * width)  # rows: queries, keys, values
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens x [B, T, E] that look at each other; `mask` [T, T] is added to the scores."""
        query, key, value = self.into(x).chunk(3, dim=-1)
        return self._attended(query, key, value, mask)

    def shown(self, memory: Tensor) -> Tensor:
        """The keys and values of the tokens `memory` [..., S, E], side by side: [..., S, 2 * E]."""
        return F.linear(memory, self.into.weight[self._width :], self.into.bias[self._width :])

    def look(self, x: Tensor, shown: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens x [B, T, E] that look at others, of which they are `shown` [B, S, 2 * E].

        `mask` [T, S] is added to the scores.
        """
        query = F.linear(x, self.into.weight[: self._width], self.into.bias[: self._width])
        key, value = shown.chunk(2, dim=-1)
        return self._attended(query, key, value, mask)

    def _attended(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = (part.unflatten(-1, (self._heads, -1)).transpose(1, 2) for part in (query, key, value))
        mask = None if mask is None else mask.to(q.dtype)  # under autocast q has another type than the buffers
        found = F.scaled_dot_product_attention(q, k, v, mask)  # [B, heads, T, E / heads]
        return self.out(found.transpose(1, 2).flatten(2))


def feed_forward(width: int, activation: nn.Module) -> nn.Sequential:
    """Two linear layers with 4 * `width` features between them: [..., width] -> [..., width]."""
    return nn.Sequential(nn.Linear(width, 4 * width), activation, nn.Linear(4 * width, width))


def check_width(where: str, width: int, heads: int) -> None:
    """Raise ValueError unless `width` can be split among the heads and holds a sinusoidal embedding."""
    if width % heads or width % 2 or width < 4:
        raise ValueError(f"{where}: width {width} must be even, at least 4 and a multiple of its {heads} heads")
