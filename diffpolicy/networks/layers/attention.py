"""Multi-head attention, the network between two attentions, and a layer of both (Vaswani et al. 2017, section 3).

Shape legend: B batch, T tokens that look, S tokens that are looked at, E features of a token.
"""

import torch
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

    def folded(self, shown: Tensor) -> Tensor:
        """The weights of `into` and `out` folded into `shown` [..., S, 2 * E]: [..., heads, S, 2 * E + 1].

        For each head and token: the E weights of its score, the E features that it adds, and the bias of its score. A
        few tokens that do not change can then be looked at without products with E x E weights (`Folded`).
        """
        key, value = (part.unflatten(-1, (self._heads, -1)) for part in shown.chunk(2, dim=-1))  # [..., S, heads, d]
        key = key * key.shape[-1] ** -0.5
        weight, bias = self.into.weight[: self._width], self.into.bias[: self._width]
        weights = torch.einsum("...shd,hde->...hse", key, weight.unflatten(0, (self._heads, -1)))
        biases = torch.einsum("...shd,hd->...hs", key, bias.unflatten(0, (self._heads, -1)))
        added = torch.einsum("...shd,ehd->...hse", value, self.out.weight.unflatten(1, (self._heads, -1)))
        added = added + self.out.bias / self._heads  # the shares of a head sum to 1
        return torch.cat([weights, added, biases[..., None]], dim=-1)

    def _attended(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = (part.view(*part.shape[:2], self._heads, -1).transpose(1, 2) for part in (query, key, value))
        mask = None if mask is None else mask.to(q.dtype)  # under autocast q has another type than the buffers
        found = F.scaled_dot_product_attention(q, k, v, mask)  # [B, heads, T, E / heads]
        return self.out(found.transpose(1, 2).flatten(2))


class Folded:
    """What tokens that do not change add to those that look at them, for all layers of a network.

    Args:
        folded: `Attention.folded` of every layer, [layers, B, heads, S, 2 * E + 1].
        mask: [T, S], added to the scores; None for none.
    """

    def __init__(self, folded: Tensor, mask: Tensor | None) -> None:
        self._sizes = folded.shape[2:4]
        weights, added, biases = folded.flatten(2, 3).split([folded.shape[-1] // 2, folded.shape[-1] // 2, 1], dim=-1)
        biases = biases.mT if mask is None else biases.mT + mask.repeat(1, self._sizes[0])
        self._layers = list(zip(biases.unbind(), weights.mT.unbind(), added.unbind(), strict=True))

    def add(self, layer: int, x: Tensor, query: Tensor) -> Tensor:
        """x [B, T, E] plus what `Attention.look` of a layer gives for `query` [B, T, E]."""
        bias, weight, added = self._layers[layer]
        scores = torch.baddbmm(bias, query, weight)  # [B, T, heads * S]
        share = scores.view(*scores.shape[:2], *self._sizes).softmax(dim=-1).view(scores.shape)
        return torch.baddbmm(x, share, added)


def feed_forward(width: int, activation: nn.Module) -> nn.Sequential:
    """Two linear layers with 4 * `width` features between them: [..., width] -> [..., width]."""
    return nn.Sequential(nn.Linear(width, 4 * width), activation, nn.Linear(4 * width, width))


class EncoderLayer(nn.Module):
    """Tokens [B, S, E] that look at each other, with the norms first (nn.TransformerEncoderLayer)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention, self.feed_forward = Attention(width, heads), feed_forward(width, nn.GELU())
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.feed_forward(self.norm2(x))


def check_width(where: str, width: int, heads: int) -> None:
    """Raise ValueError unless `width` can be split among the heads and holds a sinusoidal embedding."""
    if width % heads or width % 2 or width < 4:
        raise ValueError(f"{where}: width {width} must be even, at least 4 and a multiple of its {heads} heads")
