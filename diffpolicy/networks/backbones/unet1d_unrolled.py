"""A faster forward pass of `UNet1d` for sampling on a CPU: the same function with fewer and cheaper calls.

- Whatever depends only on the condition or the time is computed once for all steps of a chunk.
- Activations are stored as [B, T, C] between rows of zeros. What a kernel sees is then a view, and a convolution is a
  single matrix product with the weights as they are stored.
- The columns of a product are split among the threads as a batch of products, because the BLAS library runs a product
  with few rows on a single thread.
- Buffers and views are created once for all steps.

The parameters are read in place at every call, so there is no copy that a training step could make stale.

Shape legend: B batch, H horizon, A action, D condition, T time steps, L time steps out, C channels, O channels out,
K kernel taps, R times, F features of all FiLM layers, P parts into which the columns of a product are split.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEAST_COLUMNS = 16  # fewest columns in a part of a product
Layer = Any  # a part of the network; type checkers do not know the attributes of a module
Make = Callable[[], Tensor]  # computes a tensor [B, O, L, 1], channels last in memory


class UnrolledUNet1d:
    """A `UNet1d` as a list of steps on its own buffers, for one condition [B, D] and one horizon.

    Attributes:
        times: the times that it can be called with.
        shape: the shape (B, H, A) of x and the output.
    """

    def __init__(self, network: Layer, condition: Tensor, times: Sequence[float], horizon: int) -> None:
        block, self._head = network.head
        self.times, self.shape = frozenset(times), (len(condition), horizon, self._head.out_channels)
        self._film = _Film(network, condition, times)
        self._steps: list[Callable[[], object]] = []
        margin = max(1, block[0].kernel_size[0] // 2)
        self._rows = functools.partial(_Rows, condition, margin)
        self._between = functools.cache(self._rows)  # buffers within a residual block, which blocks can share
        self._scratch = functools.cache(lambda purpose, size: condition.new_empty(size))
        x = self._input = self._rows(*self.shape[1:])
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

    def __call__(self, x: Tensor, time: float) -> Tensor:
        """x [B, H, A] at one of `times` -> [B, H, A]."""
        self._film.set(time)
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
        scale, bias = self._film.of[block]
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
        out = self._rows(2 * x.length, layer.out_channels)
        parts = _parts(layer.out_channels)
        weight = layer.weight.view(x.channels, parts, -1).transpose(0, 1)  # [P, C, O / P * 4]
        bias = layer.bias.view(parts, -1)
        product = x.inner.new_empty(parts, self.shape[0] * x.length, weight.shape[2])
        taps = product.view(parts, self.shape[0], x.length, -1, 4).permute(4, 1, 2, 0, 3)  # [4, B, T, P, O / P]
        before, at_even, at_odd, after = taps[0][:, 1:], taps[1], taps[2], taps[3][:, :-1]
        rows = out.inner.unflatten(2, (parts, -1))
        even, odd = rows[:, ::2], rows[:, 1::2]
        later_even, earlier_odd = even[:, 1:], odd[:, :-1]

        def step() -> None:
            torch.bmm(x.inner.flatten(0, 1).expand(parts, -1, -1), weight, out=product)
            torch.add(at_even, bias, out=even)
            torch.add(at_odd, bias, out=odd)
            later_even.add_(after)
            earlier_odd.add_(before)

        self._steps.append(step)
        return out

    def _conv_block(self, block: Layer, x: "_Rows") -> Make:
        convolution, norm = self._convolution(block[0], x), block[1]
        groups, weight, bias, eps = norm.num_groups, norm.weight, norm.bias, norm.eps
        return lambda: F.mish(torch.group_norm(convolution(), groups, weight, bias, eps), inplace=True)

    def _convolution(self, layer: Layer, x: "_Rows") -> Make:
        """A function that computes the convolution; its result is valid until the next convolution runs."""
        windows = x.windows(layer.kernel_size[0], layer.stride[0], int(layer.padding[0]))
        batch, length, parts = *windows.shape[:2], _parts(layer.out_channels)
        weight = layer.weight.view(parts, -1, windows[0, 0].numel()).transpose(1, 2)  # [P, C * K, O / P]
        bias = layer.bias.view(parts, 1, -1)
        is_matrix = windows.is_contiguous()  # a single tap and a batch of 1
        copy = windows if is_matrix else self._scratch("windows", windows.numel()).view(windows.shape)
        matrix = copy.view(1, -1, weight.shape[1]).expand(parts, -1, -1)  # [P, B * L, C * K]
        size = batch * length * layer.out_channels
        out = self._scratch("out", size).view(-1, parts, weight.shape[2])  # [B * L, P, O / P]
        product = out.transpose(0, 1) if parts == 1 else self._scratch("parts", size).view(parts, -1, weight.shape[2])
        image = out.view(batch, length, 1, -1).permute(0, 3, 1, 2)

        def make() -> Tensor:
            if not is_matrix:
                copy.copy_(windows)
            torch.baddbmm(bias, matrix, weight, out=product)
            if parts > 1:
                out.copy_(product.transpose(0, 1))
            return image

        return make


class _Rows:
    """A tensor [B, T, C] between `margin` rows of zeros, with the batch size and dtype of `like` [B, D].

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


class _Film:
    """FiLM scale and bias of every residual block, for one condition and the time given to `set`."""

    def __init__(self, network: Layer, condition: Tensor, times: Sequence[float]) -> None:
        self._place = {time: place for place, time in enumerate(dict.fromkeys(times))}
        embedded = F.mish(
            network.time_encoder(torch.cat([condition.new_full((1,), time) for time in self._place]))
        )  # [R, D']
        encoded, split = F.mish(condition), embedded.shape[1]
        pairs = [*network.down, network.middle, *network.up]
        blocks = [block for pair in pairs for block in (pair.first, pair.second)]
        layers = [block.film[1] for block in blocks]
        self._of_time = torch.cat([F.linear(embedded, one.weight[:, :split], one.bias) for one in layers], dim=1)
        self._of_condition = torch.cat([F.linear(encoded, one.weight[:, split:]) for one in layers], dim=1)
        self._now = torch.empty_like(self._of_condition)
        parts = self._now.split([layer.out_features for layer in layers], dim=1)
        # scale, or None where FiLM only adds, and bias: views [B, O, 1, 1]
        self.of: dict[Any, tuple[Tensor | None, Tensor]] = {}
        for block, part in zip(blocks, parts, strict=True):
            view = part.view(len(condition), -1, block.first[0].out_channels, 1, 1)
            self.of[block] = (view[:, 0] if block.film_scale else None, view[:, -1])

    def set(self, time: float) -> None:
        torch.add(self._of_condition, self._of_time[self._place[time]], out=self._now)


def _parts(channels: int) -> int:
    """The number of equal parts into which `channels` columns are split; it divides the number of threads."""
    return math.gcd(max(1, channels // LEAST_COLUMNS), torch.get_num_threads())


def may_unroll(x: Tensor) -> bool:
    """Whether a network can be unrolled at the condition `x`: float32 or float64 on a CPU, no autocast or compile."""
    if torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling():
        return False
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)
