from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from calib.histograms import BINS, Histogram

values = arrays(
    np.float32,
    st.integers(0, 40),
    elements=st.floats(-(2.0**127), 2.0**127, width=32) | st.floats(-4, 4, width=32) | st.just(0.0),
)


def histogram(*batches: np.ndarray) -> Histogram:
    made = Histogram()
    for batch in batches:
        made.add(batch)
    return made


@settings(max_examples=200, deadline=None)
@given(st.lists(values, min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_counts_do_not_depend_on_how_the_values_were_split_nor_on_their_order(
    batches: list[np.ndarray], random: object
) -> None:
    whole, split = histogram(np.concatenate(batches)), histogram(*batches)
    backwards = histogram(*[batch[::-1] for batch in reversed(batches)])
    for other in (split, backwards):
        np.testing.assert_array_equal(other.counts, whole.counts)
        assert (other.top, other.largest) == (whole.top, whole.largest)


@settings(max_examples=100, deadline=None)
@given(values)
def test_counts_are_numpys(array: np.ndarray) -> None:
    made = histogram(array)
    assert made.counts.sum() == array.size
    assert made.largest == np.abs(array).max(initial=0)
    if made.top > 2.0**-100:
        assert made.largest < made.top <= 2 * made.largest
        expected, _ = np.histogram(np.abs(array.astype(np.float64)), bins=BINS, range=(0, made.top))
        np.testing.assert_array_equal(made.counts, expected)


def test_more_than_a_block_is_counted_whole() -> None:
    array = np.random.default_rng(0).normal(size=(3, 50_000)).astype(np.float32)
    made = histogram(array)
    expected, _ = np.histogram(np.abs(array.astype(np.float64)), bins=BINS, range=(0, made.top))
    np.testing.assert_array_equal(made.counts, expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_and_changes_nothing(bad: float) -> None:
    made = histogram(np.ones(5, np.float32))
    with pytest.raises(ValueError, match="NaN or Inf"):
        made.add(np.array([9, bad], np.float32))
    assert made.counts.sum() == 5
    assert made.largest == 1
