"""Shares of right answers without pairs: against scipy, and against the figures of the papers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from soup.statistics import paired_difference
from soup.unpaired import design_effect, share_difference, wilson


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 400), st.data(), st.sampled_from([0.9, 0.95, 0.99]))
def test_the_interval_of_a_share_is_wilsons_as_scipy_has_it(n, data, confidence):
    count = data.draw(st.integers(0, n))
    expected = binomtest(count, n).proportion_ci(confidence, method="wilson")
    assert wilson(count / n, n, confidence=confidence) == pytest.approx((expected.low, expected.high), abs=1e-9)


@pytest.mark.parametrize(
    ("after", "before", "low", "high"),
    [
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((5, 56), (0, 29), -0.0381, 0.1926),
        ((10, 10), (0, 10), 0.6075, 1.0),
    ],
)
def test_the_difference_of_shares_is_newcombes(after, before, low, high):
    """Table II of Newcombe 1998, method 10."""
    shares = (count / of for count, of in (after, before))
    found = share_difference(*shares, n=(after[1], before[1]))
    assert (found.low, found.high) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


def test_without_pairs_the_interval_is_wider_than_with_them():
    random = np.random.default_rng(0)
    before = random.random(1000) < 0.9
    after = before ^ (random.random(1000) < 0.02)
    paired = paired_difference(after, before)
    alone = share_difference(after.mean(), before.mean(), n=(1000, 1000))
    assert alone.estimate == pytest.approx(paired.estimate)
    assert alone.high - alone.low > paired.high - paired.low


def test_groups_of_equal_images_count_as_one_image():
    groups = np.repeat(np.arange(50), 8)
    scores = np.repeat(np.random.default_rng(0).random(50) < 0.8, 8)
    assert design_effect(scores, groups) == pytest.approx(8 * 50 / 49)
    assert design_effect(scores, None) == design_effect(np.ones(400), groups) == 1.0
    narrow = share_difference(0.8, 0.8, n=(400, 400))
    wide = share_difference(0.8, 0.8, n=(400, 400), design_effect=8)
    assert wide == share_difference(0.8, 0.8, n=(50, 50)).__class__(0.0, wide.low, wide.high, 0.95, narrow.method, 400)
    assert wide.high - wide.low > narrow.high - narrow.low


def test_nothing_known_is_everything_possible_and_nan_stays_nan():
    assert wilson(0.5, 0) == (0.0, 1.0)
    assert all(map(math.isnan, wilson(math.nan, 10)))
    assert math.isnan(share_difference(math.nan, 0.5, n=(10, 10)).low)
