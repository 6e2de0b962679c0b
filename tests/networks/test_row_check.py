"""Whether a row of a batch is rounded the same wherever it stands: found out, and said where it is not."""

import warnings

import pytest
import torch
from torch import Tensor

from diffpolicy.networks import row_check
from diffpolicy.networks.backbones.unet1d import UNet1d
from diffpolicy.networks.row_check import has_independent_rows, rows_are_independent, warn_of_dependent_rows

ROW = [torch.tensor([0.3, -1.0])]


def place(x: Tensor) -> Tensor:
    return x + 1e-7 * (torch.arange(len(x)) > 5)[:, None]


def neighbour(x: Tensor) -> Tensor:
    return x + 1e-7 * (x.roll(1, 0) - x)


def neighbour_of_odd(x: Tensor) -> Tensor:
    return torch.where((torch.arange(len(x)) % 2 == 1)[:, None], neighbour(x), x)


@pytest.mark.parametrize("function", [place, neighbour, neighbour_of_odd])
def test_a_row_that_depends_on_its_place_or_its_neighbours_is_found(function) -> None:
    assert not rows_are_independent(function, ROW, 8)


def test_a_row_by_row_function_is_independent() -> None:
    assert rows_are_independent(torch.sin, ROW, 8)
    assert rows_are_independent(lambda x, y: x * y, [*ROW, torch.tensor(2.0)[None]], 5)


def network(widths: tuple[int, ...] = (8, 16)) -> UNet1d:
    torch.manual_seed(0)
    return UNet1d(2, 6, widths, 16, 5)


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="measured with the kernels of MKL and oneDNN")
@pytest.mark.parametrize("widths", [(8, 16, 32), (32, 64, 128)])
def test_in_a_batch_of_a_multiple_of_16_the_network_has_independent_rows(widths: tuple[int, ...]) -> None:
    """Promised on all kernels, with 1 and 2 threads."""
    for batch in (1, 16, 48, 64):
        assert has_independent_rows(network(widths), 6, 16, 2, batch), f"batch {batch}"


def test_it_is_tried_and_said_once_for_a_network_a_batch_and_a_number_of_threads(monkeypatch) -> None:
    calls = []

    def dependent_in_8(function, row, batch: int) -> bool:
        calls.append((batch, torch.get_num_threads()))
        return batch != 8

    monkeypatch.setattr(row_check, "rows_are_independent", dependent_in_8)
    one, threads = network(), torch.get_num_threads()
    with pytest.warns(RuntimeWarning, match=rf"inference_batch 8 with {threads} threads?: .* choose 16"):
        warn_of_dependent_rows(one, 6, 16, 2, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for batch in (8, 16, 16):
            warn_of_dependent_rows(one, 6, 16, 2, batch)
    assert calls == [(8, threads), (16, threads)]
    torch.set_num_threads(threads + 1)
    try:
        assert not has_independent_rows(one, 6, 16, 2, 8)
    finally:
        torch.set_num_threads(threads)
    assert calls[2:] == [(8, threads + 1)]


def test_where_no_multiple_of_16_helps_fewer_threads_are_advised(monkeypatch) -> None:
    monkeypatch.setattr(row_check, "rows_are_independent", lambda *_: False)
    for batch in (16, 24):
        with pytest.warns(RuntimeWarning, match="choose fewer threads"):
            warn_of_dependent_rows(network(), 6, 16, 2, batch)
