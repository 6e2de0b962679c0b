"""The layers for a CPU equal torch's own, which they fall back to."""

from collections.abc import Callable

import pytest
import torch
from one_case import over
from torch import Tensor, nn
from torch.testing import assert_close

from diffpolicy.networks.backbones.unet1d import UNet1d
from diffpolicy.networks.layers import conv
from diffpolicy.networks.layers.blocks import ConvBlock
from diffpolicy.networks.layers.conv import Conv1d, ConvTranspose1d, GroupNormMish

LAYERS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module]]] = {
    "kernel_5": (lambda: Conv1d(8, 6, 5, padding=2), lambda: nn.Conv1d(8, 6, 5, padding=2)),
    "kernel_1": (lambda: Conv1d(8, 6, 1), lambda: nn.Conv1d(8, 6, 1)),
    "shrink": (lambda: Conv1d(8, 8, 3, stride=2, padding=1), lambda: nn.Conv1d(8, 8, 3, stride=2, padding=1)),
    "grow": (
        lambda: ConvTranspose1d(8, 6, 4, stride=2, padding=1),
        lambda: nn.ConvTranspose1d(8, 6, 4, stride=2, padding=1),
    ),
    "norm": (lambda: GroupNormMish(4, 8), lambda: nn.Sequential(nn.GroupNorm(4, 8), nn.Mish())),
}


@pytest.fixture(autouse=True)
def _every_batch_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conv, "SMALL_BATCH", 1)


def _random_parameters(layer: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for parameter in layer.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return layer


def _output_and_gradients(layer: Callable[[Tensor], Tensor], parameters: list[Tensor], x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    out = layer(x)
    return [out.detach(), *torch.autograd.grad(out.sin().sum(), [x, *parameters])]


@pytest.mark.parametrize("name", LAYERS)
@over("length", [1, 2, 4, 7, 16])
@over("dtype", [torch.float32, torch.float64])
def test_layer_and_its_gradients_equal_torchs_own(name: str, length: int, dtype: torch.dtype) -> None:
    ours, theirs = (_random_parameters(make().to(dtype)) for make in LAYERS[name])
    x = 3 * torch.randn(5, 8, length, generator=torch.Generator().manual_seed(1), dtype=dtype)
    found, expected = (_output_and_gradients(layer, list(layer.parameters()), x) for layer in (ours, theirs))
    tolerance = 1e-4 if dtype == torch.float32 else 1e-11  # sums in another order, with cancellation
    assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_equal_finite_differences(name: str) -> None:
    layer = _random_parameters(LAYERS[name][0]().double())
    x = torch.randn(2, 8, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: layer(x), (x, *layer.parameters()))


def test_norm_is_finite_and_exact_far_from_zero() -> None:
    ours, theirs = (make() for make in LAYERS["norm"])
    for layer in (ours, theirs):
        nn.init.constant_(next(layer.parameters()), 100.0)
    x = 1e3 + torch.randn(5, 8, 16, generator=torch.Generator().manual_seed(0))
    # A mean of 1000 standard deviations leaves four digits of float32, times the weight of 100.
    assert_close(ours(x), theirs(x), rtol=1e-3, atol=2e-2)


def test_network_equals_the_one_of_torchs_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = UNet1d(2, 10, (16, 32, 64), 16)
    x, time, condition = torch.randn(6, 16, 2), torch.rand(6), torch.randn(6, 10)

    def run() -> list[Tensor]:
        return _output_and_gradients(lambda x: net(x, time, condition), list(net.parameters()), x)

    found = run()
    monkeypatch.setattr(conv, "SMALL_BATCH", 1_000)
    expected = run()
    assert_close(found[0], expected[0], rtol=1e-5, atol=1e-5)  # float32 rounding through 25 layers
    assert_close(found[1:], expected[1:], rtol=1e-4, atol=1e-4)


def test_network_runs_under_bfloat16_autocast() -> None:
    torch.manual_seed(0)
    net = UNet1d(2, 10, (16, 32), 16)
    arguments = torch.randn(6, 16, 2), torch.rand(6), torch.randn(6, 10)
    with torch.autocast("cpu", torch.bfloat16):
        low = net(*arguments)
    low.float().square().mean().backward()
    assert low.dtype == torch.bfloat16
    assert_close(low.float(), net(*arguments), rtol=0.05, atol=0.05)  # 8 bits of mantissa


def test_block_keeps_the_parameter_names_of_torchs_layers() -> None:
    plain = nn.Sequential(nn.Conv1d(8, 16, 5), nn.GroupNorm(4, 16), nn.Mish())
    shapes = {name: value.shape for name, value in ConvBlock(8, 16, 5, 4).state_dict().items()}
    assert shapes == {name: value.shape for name, value in plain.state_dict().items()}


def test_network_keeps_the_parameters_of_torchs_layers() -> None:
    for layer in UNet1d(2, 10, (16, 32), 16).modules():
        if isinstance(layer, Conv1d | ConvTranspose1d | GroupNormMish):
            base = type(layer).__mro__[1]
            assert base.__module__.startswith("torch.nn")
            assert [name for name, _ in layer.named_parameters()] == ["weight", "bias"]
