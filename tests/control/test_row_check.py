"""Whether a row of a batch is rounded the same wherever it stands: found out, and said where it is not."""

import warnings

import pytest
import torch
from one_case import over
from torch import Tensor

from diffpolicy import DiffusionPolicy, PolicyConfig, PolicyController
from diffpolicy.control import row_check
from diffpolicy.control.row_check import has_independent_rows, rows_are_independent, warn_of_dependent_rows
from diffpolicy.networks.backbones.unet1d import UNet1dConfig

ROW = [torch.tensor([0.3, -1.0])]


def place(x: Tensor) -> Tensor:
    return x + 1e-7 * (torch.arange(len(x)) > 5)[:, None]


def neighbour(x: Tensor) -> Tensor:
    return x + 1e-7 * (x.roll(1, 0) - x)


def neighbour_of_odd(x: Tensor) -> Tensor:
    return torch.where((torch.arange(len(x)) % 2 == 1)[:, None], neighbour(x), x)


@over("function", [place, neighbour, neighbour_of_odd])
def test_a_row_that_depends_on_its_place_or_its_neighbours_is_found(function) -> None:
    assert not rows_are_independent(function, ROW, 8)


def test_a_row_by_row_function_is_independent() -> None:
    assert rows_are_independent(torch.sin, ROW, 8)
    assert rows_are_independent(lambda x, y: x * y, [*ROW, torch.tensor(2.0)[None]], 5)


def policy_with(widths: tuple[int, ...] = (8, 16)) -> DiffusionPolicy:
    torch.manual_seed(0)
    model = UNet1dConfig(widths=list(widths), time_embedding_dim=16)
    policy = DiffusionPolicy(PolicyConfig({"position": 3, "goal": 2}, 2, model=model))
    data = torch.linspace(-1.0, 1.0, 10)[:, None]
    policy.fit({"position": data.expand(-1, 3), "goal": data.expand(-1, 2)}, data.expand(-1, 2))
    return policy.eval()


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="measured with the kernels of MKL and oneDNN")
@over("widths", [(8, 16, 32), (32, 64, 128)])
def test_in_a_batch_of_a_multiple_of_16_a_policy_has_independent_rows(widths: tuple[int, ...]) -> None:
    """Promised on all kernels, with 1 and 2 threads."""
    policy = policy_with(widths)
    for batch in (1, 16, 48, 64):
        assert has_independent_rows(policy, batch), f"batch {batch}"


@over("widths", [(8, 16, 32), (32, 64, 128)])
def test_where_the_check_finds_independent_rows_no_place_or_neighbour_changes_a_row(widths: tuple[int, ...]) -> None:
    """Tried place by place; which batches those are is the processor's affair."""
    policy = policy_with(widths)
    one = {key: torch.randn(2, spec.features) for key, spec in policy.config.observations.items()}
    for batch in (8, 16, 24, 64):
        if not has_independent_rows(policy, batch):
            continue
        found = []
        for place in range(batch):
            seen = {key: torch.randn(batch, 2, value.shape[1]) for key, value in one.items()}
            for key, value in one.items():
                seen[key][place] = value
            generators = [torch.Generator().manual_seed(int(row != place)) for row in range(batch)]
            found.append(policy.predict_action_chunk(seen, generators, policy.sampler("ddim", 1)).plan[place])
        assert all(torch.equal(found[0], other) for other in found), f"batch {batch}"


def test_it_is_tried_and_said_once_for_a_policy_a_batch_and_a_number_of_threads(monkeypatch) -> None:
    calls = []

    def dependent_in_8(function, row, batch: int) -> bool:
        calls.append((batch, torch.get_num_threads()))
        return batch != 8

    monkeypatch.setattr(row_check, "rows_are_independent", dependent_in_8)
    one, threads = policy_with(), torch.get_num_threads()
    with pytest.warns(RuntimeWarning, match=rf"inference_batch 8 with {threads} threads?: .* choose 16"):
        warn_of_dependent_rows(one, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for batch in (8, 16, 16):
            warn_of_dependent_rows(one, batch)
    assert calls == [(8, threads), (16, threads)]
    torch.set_num_threads(threads + 1)
    try:
        assert not has_independent_rows(one, 8)
    finally:
        torch.set_num_threads(threads)
    assert calls[2:] == [(8, threads + 1)]


def test_where_no_multiple_of_16_helps_fewer_threads_are_advised(monkeypatch) -> None:
    monkeypatch.setattr(row_check, "rows_are_independent", lambda *_: False)
    for batch in (16, 24):
        with pytest.warns(RuntimeWarning, match="choose fewer threads"):
            warn_of_dependent_rows(policy_with(), batch)


def test_a_controller_says_where_the_rows_of_its_inference_batch_are_dependent_and_is_silent_elsewhere(
    monkeypatch,
) -> None:
    asked = []

    def only_in_batches_of_16(policy: DiffusionPolicy, batch: int) -> bool:
        asked.append((policy, batch))
        return batch == 16

    monkeypatch.setattr(row_check, "has_independent_rows", only_in_batches_of_16)
    policy = policy_with()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PolicyController(policy)  # no promise, no check
        assert asked == []
        PolicyController(policy, inference_batch=16)
    assert asked == [(policy, 16)]
    with pytest.warns(RuntimeWarning, match=r"inference_batch 12 .* choose 16") as caught:
        PolicyController(policy, inference_batch=12)
    assert [warning.filename for warning in caught] == [__file__], "it points to whoever makes the controller"
