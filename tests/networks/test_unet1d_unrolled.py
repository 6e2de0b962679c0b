"""The unrolled U-Net is the U-Net."""

import copy
import gc
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from one_case import over
from torch import Tensor
from torch.testing import assert_close

from diffpolicy.networks.backbones import unet1d_sampling
from diffpolicy.networks.backbones.unet1d import UNet1d
from diffpolicy.networks.backbones.unet1d_sampling import at_moments
from diffpolicy.networks.condition import Condition
from diffpolicy.networks.layers import products
from diffpolicy.networks.protocols import Moment, moments

TIMES = [99.0, 12.5, 99.0, 0.0]


def random_network(
    widths: tuple[int, ...] = (16, 32, 64), kernel: int = 5, action_dim: int = 2, condition_dim: int = 6
) -> UNet1d:
    torch.manual_seed(0)
    network = UNet1d(action_dim, condition_dim, widths, 16, kernel)
    with torch.no_grad():
        for parameter in network.parameters():  # no scale of 1 or bias of 0 that would hide a missing one
            parameter += 0.3 * torch.randn_like(parameter)
    return network


def at_times(network: UNet1d, condition: Tensor, times: Sequence[float], horizon: int):
    at = at_moments(network, condition, moments(times), horizon)
    return lambda x, time: at(x, Moment(time))


def plain(network: UNet1d, x: Tensor, time: float, condition: Tensor) -> Tensor:
    return network(x, torch.full((len(x),), time), condition)


@over("batch", [1, 3, 64])
@pytest.mark.parametrize(
    ("widths", "kernel", "horizon"), [((16, 32, 64), 5, 16), ((24, 8), 3, 4), ((8, 16, 8, 32), 1, 16), ((8, 8), 7, 6)]
)
def test_the_output_is_the_networks(batch: int, widths: tuple[int, ...], kernel: int, horizon: int) -> None:
    network = random_network(widths, kernel, action_dim=3).double()
    condition = torch.randn(batch, 6).double()
    with torch.inference_mode():
        unrolled = at_times(network, condition, TIMES, horizon)
        for time in TIMES:  # later calls find the buffers as the ones before left them
            x = torch.randn(batch, horizon, 3).double()
            expected = plain(network, x, time, condition)
            assert expected.std() > 0.1
            assert_close(unrolled(x, time), expected, rtol=1e-8, atol=1e-8)  # float64 rounding through 25 layers


@over("batch", [1, 64])
def test_in_float32_the_difference_is_rounding(batch: int) -> None:
    network, condition, x = random_network((32, 64, 128)), torch.randn(batch, 6), torch.randn(batch, 16, 2)
    with torch.inference_mode():
        found = at_times(network, condition, TIMES, 16)(x, 99.0)
        expected = plain(network, x, 99.0, condition)
    assert_close(found, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))  # through 25 layers


@over("batch", [1, 2])
@over("threads", [1, 2, 3, 64])  # 2 serves two of the three widths, 3 none
def test_the_columns_of_its_products_are_shared_out_among_any_number_of_threads(threads: int, batch: int) -> None:
    network = random_network().double()
    condition, x = torch.randn(batch, 6).double(), torch.randn(batch, 16, 2).double()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            found = at_times(network, condition, TIMES, 16)(x, 99.0)
    finally:
        torch.set_num_threads(before)
    assert_close(found, plain(network, x, 99.0, condition), rtol=1e-8, atol=1e-8)  # float64 rounding


def test_an_output_is_not_overwritten_by_the_next() -> None:
    network, condition = random_network(), torch.randn(2, 6)
    with torch.inference_mode():
        unrolled = at_times(network, condition, TIMES, 16)
        first = unrolled(torch.randn(2, 16, 2), 99.0)
        kept = first.clone()
        unrolled(torch.randn(2, 16, 2), 99.0)
    assert_close(first, kept, rtol=0, atol=0)


def test_changed_weights_are_seen_at_once() -> None:
    network, condition, x = random_network(), torch.randn(1, 6), torch.randn(1, 16, 2)
    other = random_network()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 0.1
        before = network.at_condition(Condition(condition), TIMES, 16)(x, 99.0)
        network.load_state_dict(other.state_dict())
        after = network.at_condition(Condition(condition), TIMES, 16)(x, 99.0)
    assert (after - before).abs().max() > 1e-3
    assert_close(after, plain(other, x, 99.0, condition), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("times", "time", "horizon"), [(TIMES, 55.5, 16), (TIMES, 99.0, 8), ((), 99.0, 16)], ids=["time", "horizon", "none"]
)
def test_what_it_was_not_made_for_goes_to_the_network_itself(times, time: float, horizon: int) -> None:
    network, condition, x = random_network(), torch.randn(1, 6), torch.randn(1, horizon, 2)
    with torch.no_grad():
        found = network.at_condition(Condition(condition), times, 16)(x, time)
        assert_close(found, plain(network, x, time, condition), rtol=0, atol=0)


def test_gradients_go_through_the_network_itself() -> None:
    network, condition, x = random_network(), torch.randn(1, 6), torch.randn(1, 16, 2, requires_grad=True)
    with torch.no_grad():
        output = network.at_condition(Condition(condition), TIMES, 16)
    (found,) = torch.autograd.grad(output(x, 99.0).sum(), x)
    (expected,) = torch.autograd.grad(plain(network, x, 99.0, condition).sum(), x)
    assert_close(found, expected, rtol=0, atol=0)


def test_autocast_goes_to_the_network_itself() -> None:
    network, condition, x = random_network(), torch.randn(1, 6), torch.randn(1, 16, 2)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = network.at_condition(Condition(condition), TIMES, 16)(x, 99.0)
        assert found.dtype == torch.bfloat16
        assert_close(found, plain(network, x, 99.0, condition), rtol=0, atol=0)


def test_what_is_kept_for_a_network_goes_with_it() -> None:
    gc.disable()
    try:
        network: Any = random_network()
        with torch.inference_mode():
            at_times(network, torch.randn(1, 6), TIMES, 16)(torch.randn(1, 16, 2), 99.0)
        alive = [weakref.ref(network), weakref.ref(network.down[0].first.first[0].weight)]
        del network
        assert [one() for one in alive] == [None, None], "a cycle would hold megabytes until the collector comes by"
    finally:
        gc.enable()


def test_buffers_are_kept_for_a_few_kinds_of_calls_only() -> None:
    network = random_network()
    with torch.inference_mode():
        for batch in range(1, 8):
            at_times(network, torch.randn(batch, 6), TIMES, 16)(torch.randn(batch, 16, 2), 99.0)
    assert len(unet1d_sampling._KEPT[network]._kinds) == unet1d_sampling.KEPT_KINDS


@over("form", [products.MEASURED, *(name for name, form in products.FORMS.items() if form.is_exact)])
def test_every_exact_form_of_the_products_gives_the_networks_output(form: str, monkeypatch) -> None:
    monkeypatch.setenv(products.VARIABLE, form)
    network = random_network((32, 64, 128))
    for batch in (1, 9):
        condition, x = torch.randn(batch, 6), torch.randn(batch, 16, 2)
        with torch.inference_mode():
            found, expected = at_times(network, condition, TIMES, 16)(x, 12.5), plain(network, x, 12.5, condition)
        assert_close(found, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))  # through 25 layers


def test_one_network_serves_several_threads_at_once() -> None:
    network, x = random_network(), torch.randn(1, 16, 2)
    conditions = torch.randn(8, 1, 6)

    def output(condition: Tensor) -> Tensor:
        with torch.inference_mode():
            at_time = at_times(network, condition, TIMES, 16)
            return torch.stack([at_time(x, time) for time in TIMES * 20])

    expected = [output(condition) for condition in conditions]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(output, conditions))
    assert_close(found, expected, rtol=0, atol=0)


def step(network: UNet1d) -> None:
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.AdamW(network.parameters(), 0.1, fused=True).step()


def average(network: UNet1d) -> None:
    with torch.inference_mode():
        for parameter in network.parameters():
            parameter.mul_(0.9)


def write_past_torch(network: UNet1d) -> None:
    for parameter in network.parameters():
        parameter.data.mul_(0.9)


def other_tensors(network: UNet1d) -> None:
    for parameter in network.parameters():
        parameter.data = 0.9 * parameter.data


def other_layer(network: Any) -> None:
    network.down[1].first = copy.deepcopy(network.down[1].first)
    network.down[1].first.load_state_dict({k: 0.9 * v for k, v in network.down[1].first.state_dict().items()})


def one_bias(network: Any) -> None:
    with torch.no_grad():
        network.down[0].first.film[1].bias[3] += 1.0


@over("change", [step, average, write_past_torch, other_tensors, other_layer, one_bias])
@over("form", ["stored", "packed"])
def test_copies_never_outlive_the_weights(form: str, change, monkeypatch) -> None:
    monkeypatch.setenv(products.VARIABLE, form)
    network, condition, x = random_network().double(), torch.randn(1, 6).double(), torch.randn(1, 16, 2).double()
    with torch.no_grad():
        at_times(network, condition, TIMES, 16)(x, 99.0)
    change(network)
    with torch.no_grad():
        found = at_times(network, condition, TIMES, 16)(x, 99.0)
        assert_close(found, plain(network, x, 99.0, condition), rtol=1e-8, atol=1e-8)  # float64 rounding
