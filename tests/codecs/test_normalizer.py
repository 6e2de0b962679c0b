"""Normalisation: exact ends, round trips, and never a NaN."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from one_case import over

from diffpolicy.codecs import normalizer as module
from diffpolicy.codecs.normalizer import BLOCK_ROWS, KINDS, Normalizer, NormalizerConfig, QuantilesConfig


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


@pytest.mark.parametrize("kind", ["limits", "gaussian"])
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
    ends = torch.tensor([[low], [low + width]])
    normalizer = fitted(ends, kind)
    value = torch.tensor([[x]])
    back = normalizer.decode(normalizer.encode(value))
    assert back.isfinite().all()
    tolerance = 1e-5 * max(abs(low), abs(low + width), abs(x), 1e-3)  # float32, after a subtraction
    expected = value if not normalizer.is_constant else ends.double().mean(0, keepdim=True).float()
    torch.testing.assert_close(back, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("kind", ["limits", "gaussian", "quantiles"])
def test_a_constant_feature_maps_to_zero_and_keeps_its_unit(kind: str) -> None:
    normalizer = fitted(torch.full((10, 1), 0.3), kind)
    torch.testing.assert_close(normalizer.encode(torch.tensor([[0.3], [1.3]])), torch.tensor([[0.0], [1.0]]))


@over("kind", ["limits", "gaussian", "quantiles"])
@over("value", [0.04, 0.0, -17.0, 1e6])
def test_a_constant_feature_decodes_to_exactly_its_constant(kind: str, value: float) -> None:
    varied = torch.linspace(-1.0, 1.0, 100)
    normalizer = fitted(torch.stack([torch.full((100,), value), varied], dim=1), kind)
    decoded = normalizer.decode(torch.tensor([[0.029, 0.5], [-1e3, 0.5]]))
    assert torch.equal(decoded[:, 0], torch.full((2,), value))
    torch.testing.assert_close(normalizer.encode(decoded)[:, 1], torch.full((2,), 0.5))  # the other column is decoded


@over("kind", ["limits", "gaussian", "quantiles"])
@over(
    "low, high, varies",
    [(0, 9e-5, False), (0, 1.1e-4, True), (-1e3, -999.9995, False), (1e3, 1000.002, True), (0.3, 0.30001, False)],
)
def test_less_than_range_eps_or_a_millionth_of_the_values_is_no_variation(
    kind: str, low: float, high: float, varies: bool
) -> None:
    normalizer = fitted(torch.tensor([[low], [high]], dtype=torch.float64), kind)
    assert bool(normalizer.is_constant) != varies
    if not varies:
        assert abs(float(normalizer.encode(torch.tensor([[high]])) - normalizer.encode(torch.tensor([[low]])))) < 1e-3


def test_range_eps_can_be_set_for_data_in_large_or_small_units() -> None:
    data = torch.tensor([[0.0], [5e-5]])
    for range_eps, varies in ((1e-4, False), (1e-5, True), (0.0, True)):
        normalizer = Normalizer(1, NormalizerConfig(range_eps=range_eps))
        normalizer.fit(data)
        assert bool(normalizer.is_constant) != varies
        assert (float(normalizer.scale) != 1.0) == varies


def test_an_outlier_does_not_squeeze_the_other_values_of_quantiles() -> None:
    generator = torch.Generator().manual_seed(0)
    data = torch.rand(1000, 1, generator=generator)
    data[7] = 1e4
    spread = {kind: float(fitted(data, kind).encode(data)[:7].std()) for kind in ("limits", "gaussian", "quantiles")}
    assert spread["limits"] < 1e-3
    assert spread["gaussian"] < 1e-2
    assert spread["quantiles"] > 0.3
    low, high = np.quantile(data.double().numpy(), [0.01, 0.99])
    ends = torch.tensor([[low], [high]]).float()
    torch.testing.assert_close(fitted(data, "quantiles").encode(ends), torch.tensor([[-1.0], [1.0]]))  # float32


def test_quantiles_of_a_feature_that_rarely_changes_are_its_limits() -> None:
    data = torch.zeros(1000, 1)
    data[5] = 0.08
    torch.testing.assert_close(fitted(data, "quantiles").encode(data[4:6]), torch.tensor([[-1.0], [1.0]]))


def test_quantiles_of_many_rows_are_those_of_evenly_spread_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    data = torch.linspace(0.0, 1.0, 3 * BLOCK_ROWS + 5)[:, None]
    whole = fitted(data, "quantiles").encode(data)
    monkeypatch.setattr(module, "QUANTILE_ROWS", 1000)
    torch.testing.assert_close(fitted(data, "quantiles").encode(data), whole, rtol=0, atol=2e-3)  # one row in 50


def test_none_changes_nothing() -> None:
    data = 100.0 * torch.rand(50, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(fitted(data, "none").encode(data), data)
    assert torch.equal(fitted(data, "none").decode(data), data)


@pytest.mark.parametrize("bad", [torch.tensor([[float("nan")]]), torch.tensor([[float("inf")]])])
def test_data_that_is_not_finite_is_refused(bad: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="NaN or infinite"):
        Normalizer(1).fit(bad)


@pytest.mark.parametrize("bad", [torch.zeros(0, 2), torch.zeros(5, 3), torch.zeros(5)])
def test_data_of_another_shape_is_refused(bad: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"expected \[rows >= 1, 2\]"):
        Normalizer(2).fit(bad)


@over(
    "settings, message",
    [
        ("minmax", "'minmax' must be one of limits, gaussian, quantiles, none"),
        (NormalizerConfig(range_eps=-1.0), "range_eps -1.0 must be at least 0"),
        (NormalizerConfig(range_eps=float("nan")), "range_eps nan must be at least 0"),
        (QuantilesConfig(low=0.9, high=0.1), "low 0.9 and high 0.1 must be"),
        (QuantilesConfig(high=float("nan")), "high nan must be"),
    ],
)
def test_settings_out_of_range_are_refused(settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Normalizer(1, settings)


def test_it_is_not_fitted_before_it_is() -> None:
    normalizer = Normalizer(2)
    assert not normalizer.is_fitted
    normalizer.fit(torch.rand(5, 2))
    assert normalizer.is_fitted
