from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporters.half_range import Span, Tally, span_of, unfit


def verdict(span: Span, *, constant: bool = False, steep: bool = False, beside: float | None = None) -> str:
    return unfit(span, constant=constant, steep=steep, beside=span.rms if beside is None else beside)


@given(st.lists(st.floats(-1e5, 1e5, width=32), min_size=2, max_size=40), st.integers(1, 39))
def test_a_span_does_not_depend_on_how_the_batches_are_cut(values: list[float], cut: int) -> None:
    array = np.array(values, np.float32)
    tally = Tally()
    for part in (array[:cut], array[cut:]):
        tally.add(part)

    whole, parts = span_of(array), tally.span

    assert (parts.largest, parts.smallest) == (whole.largest, whole.smallest)
    assert parts.rms == pytest.approx(whole.rms)
    assert parts.lost == pytest.approx(whole.lost)


def test_a_span_holds_what_numpy_says_of_the_same_numbers() -> None:
    array = np.array([[0.0, -3.0, 1e-6], [2.0, 4e-8, 1e-3]], np.float32)

    span = span_of(array)

    errors = array.astype(np.float64) - array.astype(np.float16)
    errors[np.abs(array) >= 2.0**-14] = 0
    assert span.largest == 3.0
    assert span.smallest == np.float32(4e-8)
    assert span.rms == pytest.approx(np.sqrt(np.mean(array.astype(np.float64) ** 2)))
    assert span.lost == pytest.approx(np.sqrt(np.mean(errors**2)))


def test_the_smallest_number_is_known_above_the_normal_range_too() -> None:
    assert span_of(np.array([0.0, -0.5, 3.0], np.float32)).smallest == 0.5


def test_zeros_and_no_numbers_at_all_fit() -> None:
    for array in (np.zeros(4, np.float32), np.zeros(0, np.float32)):
        assert span_of(array) == Span(0.0, math.inf, 0.0, 0.0)
        assert verdict(span_of(array)) == ""


def test_infinities_fit_as_fp16_has_them_and_a_nan_does_not() -> None:
    assert verdict(span_of(np.array([-math.inf, 1.0], np.float32))) == ""
    assert "reaches nan" in verdict(span_of(np.array([math.nan, 1.0], np.float32)))


@pytest.mark.parametrize(
    ("largest", "constant", "fits"),
    [(65504, True, True), (65536, True, False), (32752, False, True), (32800, False, False)],
)
def test_a_weight_may_reach_the_end_of_fp16_and_an_activation_half_of_it(
    largest: float, constant: bool, fits: bool
) -> None:
    reason = verdict(span_of(np.array([largest, 1.0], np.float32)), constant=constant)

    assert (reason == "") is fits
    assert fits or f"expected at most {65504 if constant else 32752} in FP16" in reason


def test_small_numbers_are_flushed_where_they_are_all_there_is_and_not_beside_large_ones() -> None:
    small = np.random.default_rng(0).normal(0, 1e-6, 1000).astype(np.float32)

    assert "few digits below 6.1e-05" in verdict(span_of(small))
    assert verdict(span_of(np.append(small, np.float32(1.0)))) == ""
    assert verdict(span_of(small * 1e3)) == ""


@given(st.integers(-24, 4), st.integers(0, 2**31))
def test_what_fits_is_rounded_no_worse_than_normal_numbers_are(exponent: int, seed: int) -> None:
    """Against numpy's own float16: root mean squares, over the part below the normal range."""
    array = np.random.default_rng(seed).normal(0, 2.0**exponent, 64).astype(np.float32)
    errors = array.astype(np.float64) - array.astype(np.float16)

    if verdict(span_of(array)) == "":
        relative = np.sqrt(np.mean(errors**2) / np.mean(array.astype(np.float64) ** 2))
        assert relative <= math.sqrt(2) * 2.0**-11


def test_a_bias_counts_beside_the_sum_that_it_goes_into() -> None:
    bias = span_of(np.full(8, 1e-7, np.float32))

    assert verdict(bias, beside=1.0) == ""
    assert verdict(bias) != ""
    assert verdict(bias, beside=1e-6) != ""


def test_one_small_number_is_too_many_where_a_node_divides_by_it() -> None:
    span = span_of(np.array([1.0, 1e-5], np.float32))

    assert verdict(span) == ""
    assert "goes down to 1.0e-05" in verdict(span, steep=True)
