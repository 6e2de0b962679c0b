"""The forms of a product: what DIFFPOLICY_KERNELS says, what is timed, and what bfloat16 costs."""

import pytest
import torch
from one_case import over
from torch.testing import assert_close

from diffpolicy.networks.layers import products
from diffpolicy.networks.layers.products import FORMS, MEASURED, TIMED_BATCH, VARIABLE, chosen, report, setting

WEIGHT = torch.randn(48, 20, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[products.Shape]:
    """The shapes that are timed; `packed` always takes half as long as `stored`, and `onednn` almost as long."""
    shapes = []

    def times(shape: products.Shape) -> dict[str, float]:
        shapes.append(shape)
        return {"stored": 10.0, "packed": 5.0, "onednn": 9.9}

    monkeypatch.setattr(products, "_TIMES", {})
    monkeypatch.setattr(products, "_timed", times)
    monkeypatch.setenv(VARIABLE, MEASURED)
    return shapes


def test_a_shape_is_timed_once_and_the_fastest_form_is_used_and_reported(timed) -> None:
    assert [chosen(WEIGHT, 4, batch=1) for _ in range(3)] == ["packed"] * 3
    assert chosen(WEIGHT.double(), 4, batch=1) == "packed"
    assert timed == [(4, 20, 48, dtype, torch.get_num_threads()) for dtype in (torch.float32, torch.float64)]
    assert len(report()) == 2
    assert "4 rows, 20 -> 48, float32, " in report()[0]
    assert ": packed (stored 10 us, packed 5 us, onednn 10 us)" in report()[0]


def test_a_form_that_is_hardly_faster_is_not_worth_its_copy() -> None:
    assert products._fastest({"stored": 10.0, "packed": 9.9}) == "stored"


def test_large_batches_are_not_timed_so_that_evaluations_repeat(timed) -> None:
    assert chosen(WEIGHT, 4 * TIMED_BATCH, batch=TIMED_BATCH) == "stored"
    assert timed == []
    assert report() == []


def runs_here(form: str) -> bool:
    """Whether this processor and build of torch have a form."""
    return products._runs(FORMS[form]) and (form != "bfloat16" or products._has_bfloat16())


@over("form", [*FORMS])
def test_the_variable_fixes_the_form_for_every_batch(form: str, timed, monkeypatch) -> None:
    if not runs_here(form):  # it is refused, as the tests below say
        return
    monkeypatch.setenv(VARIABLE, form)
    assert {chosen(WEIGHT, rows, rows) for rows in (1, 64)} == {form}
    assert chosen(WEIGHT.double(), 1, 1) == (form if form in ("stored", "packed") else "stored")
    assert timed == []


def test_an_unknown_form_is_refused_with_the_known_ones(monkeypatch) -> None:
    monkeypatch.setenv(VARIABLE, "fast")
    expected = "DIFFPOLICY_KERNELS: 'fast' is unknown, expected one of measured, bfloat16, onednn, packed, stored"
    with pytest.raises(ValueError, match=expected):
        setting()


def test_bfloat16_is_refused_where_the_processor_would_emulate_it(monkeypatch) -> None:
    monkeypatch.setenv(VARIABLE, "bfloat16")
    monkeypatch.setattr(products, "_has_bfloat16", lambda: False)
    with pytest.raises(ValueError, match="bfloat16 needs a processor with AVX512-BF16 or AMX"):
        setting()


@over("form", ["onednn", "bfloat16"])
def test_a_form_that_this_build_of_torch_does_not_run_is_refused(form: str, monkeypatch) -> None:
    monkeypatch.setenv(VARIABLE, form)
    monkeypatch.setattr(products, "_has_bfloat16", lambda: True)
    monkeypatch.setattr(products, "_onednn", lambda: None)
    monkeypatch.setattr(products, "_RUNS", {})
    with pytest.raises(ValueError, match=f"{form} does not run with this torch and processor"):
        setting()


@over("form", [*FORMS])
@over("bias", [True, False])
def test_every_form_computes_the_product(form: str, bias: bool) -> None:
    if not runs_here(form):
        return
    x, out, added = torch.randn(5, 20), torch.empty(5, 48), torch.randn(48) if bias else None
    FORMS[form].bind(x, FORMS[form].pack(WEIGHT), added, out)()
    expected = x @ WEIGHT.T + (0.0 if added is None else added)
    atol = 1e-5 if FORMS[form].is_exact else 0.1  # float32 rounding; 8 bits of mantissa, 20 terms of about 1
    assert_close(out, expected, rtol=0, atol=atol)


def test_timing_covers_the_exact_forms_that_run_here() -> None:
    shape = products.Shape(4, 20, 48, torch.float32, torch.get_num_threads())
    names = {name for name, form in FORMS.items() if form.is_exact and products._runs(form)}
    assert set(products._timed(shape)) == names
    assert "onednn" not in products._timed(shape._replace(dtype=torch.float64))
