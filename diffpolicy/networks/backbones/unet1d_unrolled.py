"""A faster forward pass of `UNet1d` for sampling on a CPU: the same function with fewer and cheaper calls.

- Activations are stored as [B, T, C] between rows of zeros. What a kernel sees is then a view, and a convolution is a
  single matrix product, in the fastest of the forms of `layers/products.py`.
- Buffers and views are created once.
- FiLM's scales and biases come from outside: `unet1d_sampling.py` computes them once per chunk.

Shape legend: B batch, H horizon, A action, T time steps, L time steps out, C channels, O channels out, K kernel taps,
F features of all FiLM layers.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffpolicy.networks.layers import products

Layer = Any  # a part of the network; type checkers do not know the attributes of a module
Make = Callable[[], Tensor]  # computes a tensor [B, O, L, 1], channels last in memory
Copies = dict[tuple[int, str, int], Tensor]  # (address of a weight, form, threads) -> what the form reads


class UnrolledUNet1d:
    """A `UNet1d` as a list of steps on its own buffers, for one batch size and one horizon.

    Args:
        network: the U-Net. Its parameters are read in place, except for what is in `copies`.
        shape: (B, H, A) of the input and the output.
        film: a buffer [B, F] that holds the scales and biases of the FiLM layers at the time of a call.
        copies: the weights as the products read them; missing ones are added.
    """

    def __init__(self, network: Layer, shape: tuple[int, int, int], film: Tensor, copies: Copies) -> None:
        block, self._head = network.head
        self._batch, length, features = shape
        self._copies = copies
        self._film = film_views(network, film)
        self._steps: list[Callable[[], object]] = []
        margin = max(1, block[0].kernel_size[0] // 2)
        self._rows = functools.partial(_Rows, film, margin)
        self._between = functools.cache(self._rows)  # buffers within a residual block, which blocks can share
        self._scratch = functools.cache(lambda purpose, size: film.new_empty(size))
        x = self._input = self._rows(length, features)
        skips: list[_Rows] = []
        for level, blocks in enumerate(network.down):
            x = self._pair(x, blocks)
            skips.append(x)
            if level < len(network.shrink):
                x = self._shrink(x, network.shrink[level])
        x = self._pair(x, network.middle)
        for blocks, grow in zip(network.up, network.grow, strict=True):
            x = self._grow(self._pair(self._concatenate(x, skips.pop()), blocks), grow)
        self._hidden = self._conv_block(block, x)

    def __call__(self, x: Tensor) -> Tensor:
        """x [B, H, A] -> [B, H, A]."""
        self._input.inner.copy_(x)
        for step in self._steps:
            step()
        hidden = self._hidden().squeeze(3).transpose(1, 2)  # [B, H, C]
        return F.linear(hidden, self._head.weight[..., 0], self._head.bias)

    def _pair(self, x: "_Rows", blocks: Layer) -> "_Rows":
        return self._residual(self._residual(x, blocks.first), blocks.second)

    def _residual(self, x: "_Rows", block: Layer) -> "_Rows":
        channels = block.first[0].out_channels
        between, out = self._between(x.length, channels), self._rows(x.length, channels)
        first, second = self._conv_block(block.first, x), self._conv_block(block.second, between)
        scale, bias = self._film[block]
        same = isinstance(block.residual, nn.Identity)
        residual = (lambda: x.image) if same else self._convolution(block.residual, x)
        if scale is None:
            self._steps.append(lambda: torch.add(first(), bias, out=between.image))
        else:
            self._steps.append(lambda: torch.addcmul(bias, first(), scale, out=between.image))
        self._steps.append(lambda: torch.add(second(), residual(), out=out.image))
        return out

    def _shrink(self, x: "_Rows", layer: Layer) -> "_Rows":
        convolution, out = self._convolution(layer, x), self._rows(x.length // 2, x.channels)
        self._steps.append(lambda: out.image.copy_(convolution()))
        return out

    def _concatenate(self, x: "_Rows", skip: "_Rows") -> "_Rows":
        out = self._rows(x.length, x.channels + skip.channels)
        self._steps.append(lambda: torch.cat([x.inner, skip.inner], dim=2, out=out.inner))
        return out

    def _grow(self, x: "_Rows", layer: Layer) -> "_Rows":
        """Transposed convolution with stride 2, padding 1 and 4 taps.

        Output row 2 t is the sum of tap 1 of input row t and tap 3 of row t - 1; output row 2 t + 1 is the sum of tap 2
        of row t and tap 0 of row t + 1.
        """
        out, bias = self._rows(2 * x.length, layer.out_channels), layer.bias
        is_matrix = x.inner.is_contiguous()
        matrix = x.inner if is_matrix else self._scratch("windows", x.inner.numel()).view(x.inner.shape)
        product = self._scratch("taps", 2 * out.inner.numel()).view(self._batch, x.length, -1, 4)
        multiply = self._product(
            layer.weight.flatten(1).t(),  # [O * 4, C]
            None,
            matrix.flatten(0, 1),
            product.flatten(2).flatten(0, 1),
        )
        taps = product.permute(3, 0, 1, 2)  # [4, B, T, O]
        before, at_even, at_odd, after = taps[0][:, 1:], taps[1], taps[2], taps[3][:, :-1]
        even, odd = out.inner[:, ::2], out.inner[:, 1::2]
        later_even, earlier_odd = even[:, 1:], odd[:, :-1]

        def step() -> None:
            if not is_matrix:
                matrix.copy_(x.inner)
            multiply()
            torch.add(at_even, bias, out=even)
            torch.add(at_odd, bias, out=odd)
            later_even.add_(after)
            earlier_odd.add_(before)

        self._steps.append(step)
        return out

    def _conv_block(self, block: Layer, x: "_Rows") -> Make:
        convolution, norm = self._convolution(block[0], x), block[1]
        sizes = self._batch, block[0].out_channels, x.length, norm.num_groups, norm.eps
        weight, bias, group_norm = norm.weight, norm.bias, torch.native_group_norm
        return lambda: F.mish(group_norm(convolution(), weight, bias, *sizes)[0], inplace=True)

    def _convolution(self, layer: Layer, x: "_Rows") -> Make:
        """A function that computes the convolution; its result is valid until the next convolution runs."""
        windows = x.windows(layer.kernel_size[0], layer.stride[0], int(layer.padding[0]))
        batch, length = windows.shape[:2]
        is_matrix = windows.is_contiguous()  # a single tap and a batch of 1
        copy = windows if is_matrix else self._scratch("windows", windows.numel()).view(windows.shape)
        out = self._scratch("out", batch * length * layer.out_channels).view(batch, length, 1, -1)
        multiply = self._product(
            layer.weight.flatten(1), layer.bias, copy.view(batch * length, -1), out.view(batch * length, -1)
        )
        image = out.permute(0, 3, 1, 2)

        def make() -> Tensor:
            if not is_matrix:
                copy.copy_(windows)
            multiply()
            return image

        return make

    def _product(self, weight: Tensor, bias: Tensor | None, x: Tensor, out: Tensor) -> products.Product:
        """A function that computes x [M, I] @ weight [O, I].T + bias into out [M, O]."""
        name = products.chosen(weight, len(x), self._batch)
        form, key = products.FORMS[name], (weight.data_ptr(), name, torch.get_num_threads())
        if key not in self._copies:
            self._copies[key] = form.pack(weight.detach())
        return form.bind(x, self._copies[key], bias, out)


class _Rows:
    """A tensor [B, T, C] between `margin` rows of zeros, with the batch size and dtype of `like` [B, F].

    Attributes:
        inner: a view of the tensor without the margins.
        image: the same view as [B, C, T, 1], which torch's layers treat as channels last.
    """

    def __init__(self, like: Tensor, margin: int, length: int, channels: int) -> None:
        self.length, self.channels, self._margin = length, channels, margin
        self._padded = like.new_zeros(len(like), length + 2 * margin, channels)
        self.inner = self._padded[:, margin : margin + length]
        self.image = self.inner.transpose(1, 2).unsqueeze(3)

    def windows(self, kernel: int, stride: int, padding: int) -> Tensor:
        """The input of a kernel at each of its positions, a view [B, L, C, K]."""
        (batch, rows, channels), start = self._padded.shape, (self._margin - padding) * self.channels
        shape = (batch, (self.length + 2 * padding - kernel) // stride + 1, channels, kernel)
        return self._padded.as_strided(shape, (rows * channels, stride * channels, 1, channels), start)


def residual_blocks(network: Layer) -> list[Layer]:
    """The residual blocks of a `UNet1d`, in the order of their FiLM features."""
    return [block for pair in [*network.down, network.middle, *network.up] for block in (pair.first, pair.second)]


def film_views(network: Layer, film: Tensor) -> dict[Layer, tuple[Tensor | None, Tensor]]:
    """Scale and bias of every residual block, views [B, O, 1, 1] of `film` [B, F]; no scale where FiLM only adds."""
    blocks = residual_blocks(network)
    parts = film.split([block.film[1].out_features for block in blocks], dim=1)
    views = {}
    for block, part in zip(blocks, parts, strict=True):
        view = part.view(len(film), -1, block.first[0].out_channels, 1, 1)
        views[block] = (view[:, 0] if block.film_scale else None, view[:, -1])
    return views
