"""Convolution and group normalisation with Mish for short sequences, faster on a CPU than the layers of torch.

The layers have the parameters, the shapes and, up to rounding, the results of nn.Conv1d, nn.ConvTranspose1d and
nn.GroupNorm followed by nn.Mish. On a CPU they store a [B, C, T] tensor in the memory order [T, B, C]. The rows that
meet one tap of the kernel then form a matrix without copying: one product per tap, with no unfolded copy and no
padding rows. In all other cases (another device, autocast, torch.compile, small batches) they call torch's layers.

Shape legend: B batch, C or I channels in, O channels out, K taps of the kernel, T time steps, L time steps out.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Pairs = list[tuple[slice, slice]]  # per tap: the rows of the long and of the short sequence that meet there
SMALL_BATCH = 64  # below this size the calls cost more than the arithmetic


class Conv1d(nn.Conv1d):
    """nn.Conv1d with a bias and zero padding, without dilation or channel groups: [B, I, T] -> [B, O, L]."""

    def _apply(self, fn: Any, recurse: bool = True) -> "Conv1d":
        super()._apply(fn, recurse)
        self.weight.data = _taps_first_on_gpu(self.weight.data)
        return self

    def forward(self, input: Tensor) -> Tensor:
        if not _time_first_pays(input):
            return super().forward(input)
        (kernel,), (stride,), padding = self.kernel_size, self.stride, int(self.padding[0])
        length = (input.shape[2] + 2 * padding - kernel) // stride + 1
        pairs = [(after, before) for before, after in _pairs(kernel, stride, padding, input.shape[2], length)]
        return _time_first(_Taps, input, self.weight.permute(2, 1, 0).contiguous(), self.bias, pairs, length)


class ConvTranspose1d(nn.ConvTranspose1d):
    """nn.ConvTranspose1d with a bias, without dilation, channel groups or output padding: [B, I, T] -> [B, O, L]."""

    def _apply(self, fn: Any, recurse: bool = True) -> "ConvTranspose1d":
        super()._apply(fn, recurse)
        self.weight.data = _taps_first_on_gpu(self.weight.data)
        return self

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        if output_size is not None or not _time_first_pays(input):
            return super().forward(input, output_size)
        (kernel,), (stride,), padding = self.kernel_size, self.stride, int(self.padding[0])
        length = (input.shape[2] - 1) * stride - 2 * padding + kernel
        pairs = _pairs(kernel, stride, padding, length, input.shape[2])
        return _time_first(_Taps, input, self.weight.permute(2, 0, 1).contiguous(), self.bias, pairs, length)


class GroupNormMish(nn.GroupNorm):
    """nn.GroupNorm, then nn.Mish: [B, C, T] -> [B, C, T]."""

    def forward(self, input: Tensor) -> Tensor:
        if not _time_first_pays(input):
            return F.mish(super().forward(input))
        return _time_first(_GroupNormMish, input, self.weight, self.bias, self.num_groups, self.eps)


def concatenate(*parts: Tensor) -> Tensor:
    """Concatenate tensors [B, C, T] along the channels, in the memory order of the layers above."""
    if not _time_first_pays(parts[0]):
        return torch.cat(parts, dim=1)
    return torch.cat([part.permute(2, 0, 1) for part in parts], dim=2).permute(1, 2, 0)


def _taps_first_on_gpu(weight: Tensor) -> Tensor:
    """Store a weight [., ., K] in the memory order [., K, .] on a GPU, where cuDNN would otherwise reorder it per call.

    Reordering took 5.9 of the 14.5 ms of ten evaluations of 65.8 million parameters on an H100, batch 1.
    """
    return weight.mT.contiguous().mT if weight.device.type == "cuda" else weight.contiguous()


def _time_first_pays(x: Tensor) -> bool:
    if x.shape[0] < SMALL_BATCH or x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64):
        return False
    return not torch.is_autocast_enabled("cpu") and not torch.compiler.is_compiling()


def _time_first(function: type[torch.autograd.Function], x: Tensor, *arguments: Any) -> Tensor:
    """Apply `function`, which works on [T, B, C], to x [B, C, T]."""
    return function.apply(x.permute(2, 0, 1).contiguous(), *arguments).permute(1, 2, 0)


def _pairs(kernel: int, stride: int, padding: int, long: int, short: int) -> Pairs:
    """The rows that meet at each tap: row s of the short sequence, row stride * s + tap - padding of the long one."""
    pairs = []
    for shift in range(-padding, kernel - padding):
        first = max(0, -(shift // stride))
        stop = max(first, min(short, (long - 1 - shift) // stride + 1))
        start = first * stride + shift
        pairs.append((slice(start, start + (stop - first) * stride, stride), slice(first, stop)))
    return pairs


class _Taps(torch.autograd.Function):
    """out[after] += x[before] @ weight[tap] for each tap: x [T, B, I], weight [K, I, O], bias [O] -> [L, B, O]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, pairs: Pairs, length: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.pairs = pairs
        out = bias.expand(length, x.shape[1], -1).contiguous()
        for (after, before), tap in zip(pairs, weight, strict=True):
            _add_product(out[after], x[before], tap)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad = grad.contiguous()
        grad_x = torch.zeros_like(x) if ctx.needs_input_grad[0] else None
        grad_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        for k, (after, before) in enumerate(ctx.pairs):
            if grad_x is not None:
                _add_product(grad_x[before], grad[after], weight[k].T)
            if grad_weight is not None:
                torch.mm(x[before].flatten(0, 1).T, grad[after].flatten(0, 1), out=grad_weight[k])
        return grad_x, grad_weight, grad.sum((0, 1)), None, None


def _add_product(out: Tensor, x: Tensor, matrix: Tensor) -> None:
    out.baddbmm_(x, matrix.expand(len(x), -1, -1))


class _GroupNormMish(torch.autograd.Function):
    """x [T, B, C], weight [C], bias [C] -> [T, B, C].

    With e = exp(z): tanh(softplus(z)) = n / (n + 2) for n = e (e + 2), and its derivative is 4 e (e + 1) / (n + 2)^2.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        centred = x - _group_mean(x.mean(0), groups)
        inverse_std = (_group_mean(centred.square().mean(0), groups) + eps).rsqrt()  # [B, C]
        z = torch.addcmul(bias.expand_as(inverse_std).contiguous(), centred, inverse_std * weight)
        e = z.clamp(max=20).exp_()  # beyond 20 the tanh is 1 in float64
        e_plus_1 = e + 1
        n = torch.addcmul(e, e, e_plus_1)
        n_plus_2 = n + 2
        tanh = n.div_(n_plus_2)
        out = z * tanh
        if any(ctx.needs_input_grad):
            slope = tanh.addcmul_(z, e.mul_(e_plus_1).div_(n_plus_2).div_(n_plus_2), value=4)
            ctx.save_for_backward(centred, inverse_std, slope, weight)
            ctx.groups = groups
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        centred, inverse_std, slope, weight = ctx.saved_tensors
        grad_z = grad * slope
        product = grad_z * centred
        mean, mean_product = grad_z.mean(0), product.mean(0)  # [B, C]
        offset = -inverse_std * _group_mean(mean * weight, ctx.groups)
        along = -(inverse_std**3) * _group_mean(mean_product * weight, ctx.groups)
        grad_x = torch.addcmul(offset, grad_z, inverse_std * weight, out=product).addcmul_(centred, along)
        length = len(centred)
        return grad_x, (mean_product * inverse_std).sum(0) * length, mean.sum(0) * length, None, None


def _group_mean(x: Tensor, groups: int) -> Tensor:
    """Replace each value of x [B, C] with the mean over its group of channels."""
    return x.unflatten(1, (groups, -1)).mean(-1, keepdim=True).expand(-1, -1, x.shape[1] // groups).flatten(1)
