"""Normalisation: exact ends, round trips, and never a NaN."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from one_case import over

from diffpolicy.codecs.normalizer import BLOCK_ROWS, KINDS, Normalizer


def fitted(data: torch.Tensor, kind: str) -> Normalizer:
    normalizer = Normalizer(data.shape[1], kind)
    normalizer.fit(data)
    return normalizer


def test_limits_map_the_data_onto_minus_1_to_1() -> None:
    data = torch.tensor([[2.0, -5.0], [4.0, 5.0], [3.0, 0.0]])
    torch.testing.assert_close(
        fitted(data, "limits").encode(data), torch.tensor([[-1.0, -1.0], [1.0, 1.0], [0.0, 0.0]])
    )


def test_gaussian_gives_mean_0_and_standard_deviation_1() -> None:
    data = 3 + 7 * torch.randn(1000, 2, generator=torch.Generator().manual_seed(0))
    normalised = fitted(data, "gaussian").encode(data)
    torch.testing.assert_close(normalised.mean(0), torch.zeros(2), rtol=0, atol=1e-5)  # float32 sums of 1000
    torch.testing.assert_close(normalised.std(0, correction=0), torch.ones(2), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_statistics_joined_from_blocks_are_those_of_the_whole(kind: str) -> None:
    data = 3 + 7 * torch.randn(2 * BLOCK_ROWS + 5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = fitted(data, kind)
    low, high = data.amin(0), data.amax(0)
    radius = (high - low) / 2 if kind == "limits" else data.std(0, correction=0)
    center = (high + low) / 2 if kind == "limits" else data.mean(0)
    torch.testing.assert_close(found.scale, (1 / radius).float(), rtol=0, atol=0)
    torch.testing.assert_close(found.offset, (-center / radius).float(), rtol=2e-7, atol=0)  # an ulp of float32


@pytest.mark.parametrize("kind", KINDS)
@given(low=st.floats(-1e5, 1e5), width=st.one_of(st.just(0.0), st.floats(1e-5, 1e5)), x=st.floats(-1e5, 1e5))
def test_round_trip_and_no_nan_for_any_range_constant_ones_included(
    kind: str, low: float, width: float, x: float
) -> None:
    normalizer = fitted(torch.tensor([[low], [low + width]]), kind)
    value = torch.tensor([[x]])
    back = normalizer.decode(normalizer.encode(value))
    assert back.isfinite().all()
    tolerance = 1e-5 * max(abs(low), abs(low + width), abs(x), 1e-3)  # float32, after a subtraction
    torch.testing.assert_close(back, value, rtol=0, atol=tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_a_constant_feature_maps_to_zero_and_keeps_its_unit(kind: str) -> None:
    normalizer = fitted(torch.full((10, 1), 0.3), kind)
    torch.testing.assert_close(normalizer.encode(torch.tensor([[0.3], [1.3]])), torch.tensor([[0.0], [1.0]]))


@over("kind", KINDS)
@over("low, high, varies", [(0, 9e-7, False), (0, 1.1e-6, True), (-1e3, -999.9995, False), (1e3, 1000.002, True)])
def test_less_than_a_millionth_of_a_unit_or_of_the_values_is_no_variation(
    kind: str, low: float, high: float, varies: bool
) -> None:
    normalizer = fitted(torch.tensor([[low], [high]], dtype=torch.float64), kind)
    assert (float(normalizer.scale) != 1.0) == varies


@pytest.mark.parametrize("bad", [torch.tensor([[float("nan")]]), torch.tensor([[float("inf")]])])
def test_data_that_is_not_finite_is_refused(bad: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="NaN or infinite"):
        Normalizer(1).fit(bad)


@pytest.mark.parametrize("bad", [torch.zeros(0, 2), torch.zeros(5, 3), torch.zeros(5)])
def test_data_of_another_shape_is_refused(bad: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"expected \[rows >= 1, 2\]"):
        Normalizer(2).fit(bad)


def test_unknown_kind_lists_the_known() -> None:
    with pytest.raises(ValueError, match="'minmax' must be one of limits, gaussian"):
        Normalizer(1, "minmax")


def test_it_is_not_fitted_before_it_is() -> None:
    normalizer = Normalizer(2)
    assert not normalizer.is_fitted
    normalizer.fit(torch.rand(5, 2))
    assert normalizer.is_fitted
