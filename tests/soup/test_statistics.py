"""Intervals hold what they promise: checked by simulation, by scipy, and by their own defining equations."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import binomtest, t

import soup.statistics as statistics
from soup.statistics import (
    Interval,
    difference_text,
    interval_text,
    mcnemar,
    paired_bootstrap,
    paired_difference,
    samples_needed,
)

flips = st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(1, 300))


def right_or_wrong(gained: int, lost: int, unchanged: int) -> tuple[np.ndarray, np.ndarray]:
    after = np.repeat([True, False, True], [gained, lost, unchanged])
    before = np.repeat([False, True, True], [gained, lost, unchanged])
    return after, before


def test_two_percent_flips_among_a_thousand_are_known_to_less_than_a_point():
    """Correctness 45: ±0.74 points is Wald's interval at 90 %; the score interval is a little wider."""
    after, before = right_or_wrong(10, 10, 980)
    for confidence in (0.90, 0.95):
        wald = NormalDist().inv_cdf((1 + confidence) / 2) * math.sqrt(0.02 / 1000)
        high = paired_difference(after, before, confidence=confidence).high
        assert wald < high < 1.1 * wald


@pytest.mark.parametrize("groups", [None, np.arange(200) // 10])
def test_no_changed_sample_still_leaves_a_width(groups):
    right = np.ones(200, dtype=bool)
    interval = paired_difference(right, right, groups=groups)
    z = NormalDist().inv_cdf(0.975)
    assert interval.estimate == 0
    assert interval.high == pytest.approx(z**2 / (200 + z**2))  # the score bound of a binomial rate when none was seen
    assert interval.low == pytest.approx(-interval.high)


@pytest.mark.parametrize(("gained", "lost", "unchanged"), [(3, 1, 40), (0, 7, 30), (12, 12, 76)])
def test_an_end_of_the_score_interval_is_where_the_score_test_just_rejects(gained, lost, unchanged):
    """The nuisance rate is maximised by scipy here, by Tango's closed form there."""
    n, z = gained + lost + unchanged, NormalDist().inv_cdf(0.975)
    interval = paired_difference(*right_or_wrong(gained, lost, unchanged))
    for delta in (interval.low, interval.high):

        def loss(rate: float, delta: float = delta) -> float:
            cells = [(gained, rate + delta), (lost, rate), (unchanged, 1 - 2 * rate - delta)]
            return -sum(count * math.log(max(p, 1e-300)) for count, p in cells)

        rate = minimize_scalar(loss, bounds=(max(0.0, -delta), (1 - delta) / 2), options={"xatol": 1e-12}).x
        deviation = (gained - lost) / n - delta
        assert abs(deviation) / math.sqrt((2 * rate + delta - delta**2) / n) == pytest.approx(z, abs=1e-3)


@settings(max_examples=30, deadline=None)
@given(flips)
def test_swapping_the_models_mirrors_the_interval(counts):
    after, before = right_or_wrong(*counts)
    forth, back = paired_difference(after, before), paired_difference(before, after)
    assert (forth.low, forth.high) == pytest.approx((-back.high, -back.low))
    assert -1 <= forth.low <= forth.estimate <= forth.high <= 1
    assert forth.high - forth.low > 0


@pytest.mark.parametrize(("n", "gain_rate", "loss_rate"), [(100, 0.02, 0.02), (1000, 0.01, 0.01), (50, 0.2, 0.05)])
def test_the_score_interval_covers_the_truth_at_the_stated_rate(n, gain_rate, loss_rate):
    """Correctness 32: under no difference, false "better" verdicts stay at or under half of 5 %."""
    counts = np.random.default_rng(0).multinomial(n, [gain_rate, loss_rate, 1 - gain_rate - loss_rate], size=1500)
    intervals = {tuple(row): paired_difference(*right_or_wrong(*row)) for row in np.unique(counts, axis=0)}
    found = [intervals[tuple(row)] for row in counts]
    truth = gain_rate - loss_rate
    assert np.mean([interval.low <= truth <= interval.high for interval in found]) >= 0.93
    assert np.mean([interval.low > truth for interval in found]) <= 0.025 + 0.012


def test_clustered_noise_is_not_called_better_more_often_than_stated(monkeypatch):
    """Correctness 32, by group: frames of one clip agree with each other, and counted one by one they overstate."""
    monkeypatch.setattr(statistics, "RESAMPLES", 500)
    generator, groups = np.random.default_rng(1), np.repeat(np.arange(25), 20)
    grouped = alone = 0
    for _ in range(300):
        lean = generator.normal(0, 0.15, 25)[groups]
        after = generator.random(500) < 0.7 + lean
        before = generator.random(500) < 0.7 - lean
        grouped += paired_difference(after, before, groups=groups).low > 0
        alone += paired_difference(after, before).low > 0
    assert grouped / 300 <= 0.05
    assert alone / 300 > 0.08


def test_identical_frames_are_judged_as_if_each_clip_were_one_sample():
    """The design effect of ten identical frames is ten, up to k/(k-1): Tango's interval of the clips themselves."""
    after, before = right_or_wrong(6, 1, 33)
    clips = paired_difference(after, before)
    frames = paired_difference(after.repeat(10), before.repeat(10), groups=np.arange(40).repeat(10))
    assert frames.low <= clips.low + 0.002
    assert frames.high >= clips.high - 0.002
    assert paired_difference(after.repeat(10), before.repeat(10)).low > clips.low


@pytest.mark.parametrize("n", [4, 10, 40])
def test_the_bootstrap_of_few_real_scores_covers_like_students_t(n, monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 500)
    scores = np.random.default_rng(2).normal(size=(400, n))
    found = [paired_difference(row, np.zeros(n)) for row in scores]
    assert np.mean([interval.low <= 0 <= interval.high for interval in found]) == pytest.approx(0.95, abs=0.03)


@pytest.mark.parametrize("confidence", [0.9, 0.95])
@pytest.mark.parametrize("freedom", [2, 3, 5, 30, 1000])
def test_the_series_for_students_t_agrees_with_scipy(freedom, confidence):
    ratio = t.ppf((1 + confidence) / 2, freedom) / NormalDist().inv_cdf((1 + confidence) / 2)
    assert statistics._t_over_z(confidence, freedom=freedom) == pytest.approx(ratio, rel=0.01)


def test_the_general_bootstrap_of_a_mean_is_the_bootstrap_of_the_mean():
    generator = np.random.default_rng(3)
    after, before = generator.normal(size=60), generator.normal(size=60)
    groups = np.array([f"clip-{index % 7}" for index in range(60)])
    direct = paired_difference(after, before, groups=groups)
    general = paired_bootstrap(lambda stats: stats["s"].mean(), {"s": after}, {"s": before}, groups=groups)
    assert (general.estimate, general.low, general.high) == pytest.approx((direct.estimate, direct.low, direct.high))
    assert (general.groups, general.n) == (7, 60)


def test_the_same_arguments_give_the_same_interval_and_another_seed_another():
    after, before = np.random.default_rng(4).normal(size=(2, 50))
    assert paired_difference(after, before) == paired_difference(after, before)
    assert paired_difference(after, before) != paired_difference(after, before, seed=1)


def test_groups_too_few_to_judge_leave_the_interval_open():
    scores = np.random.default_rng(5).normal(size=40)
    interval = paired_difference(scores, np.zeros(40), groups=np.arange(40) % 2)
    assert (interval.low, interval.high, interval.groups) == (-math.inf, math.inf, 2)
    assert "2 groups" in interval.method


def test_a_metric_undefined_on_a_resample_leaves_the_interval_open():
    labels = {"label": np.array([1, 0, 0, 0])}
    interval = paired_bootstrap(lambda stats: 1.0 if stats["label"].any() else math.nan, labels, labels)
    assert (interval.estimate, interval.low, interval.high) == (0, -math.inf, math.inf)


@pytest.mark.parametrize("scores", [np.array([]), np.array([0.5, math.nan]), np.array([0.5, math.inf])])
def test_scores_that_are_no_numbers_give_a_difference_that_is_none(scores):
    interval = paired_difference(scores, np.zeros(len(scores)))
    assert math.isnan(interval.estimate)
    assert math.isnan(interval.low)


def test_scores_of_different_samples_are_a_bug():
    with pytest.raises(ValueError, match=r"\[3, 4\]"):
        paired_difference(np.ones(3), np.ones(4))


@settings(max_examples=30, deadline=None)
@given(flips)
def test_mcnemars_p_is_scipys_exact_binomial(counts):
    gained, lost, _ = counts
    expected = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert mcnemar(*right_or_wrong(*counts)) == pytest.approx(expected, rel=1e-9)


def test_the_samples_asked_for_do_decide():
    """The same rates at the number asked for put the limit just outside the interval."""
    few = paired_difference(*right_or_wrong(6, 10, 484))
    needed = samples_needed(few, -0.02)
    assert few.low < -0.02
    scale = needed / 500
    assert paired_difference(*right_or_wrong(round(6 * scale), round(10 * scale), round(484 * scale))).low >= -0.0202


def test_no_number_of_samples_decides_an_estimate_that_lies_on_the_limit():
    assert samples_needed(Interval(0.0, -1, 1, 0.95, "", 10), 0.0) is None
    assert samples_needed(Interval(0.0, -math.inf, math.inf, 0.95, "", 10), 0.1) is None
    assert samples_needed(Interval(math.nan, math.nan, math.nan, 0.95, "", 10), 0.1) is None


def test_intervals_read_in_points_or_in_the_metrics_own_unit():
    interval = Interval(0.0062, -0.001, 0.0134, 0.95, "", 500)
    assert interval_text(interval, unit="%") == "+0.62 points, 95 % interval −0.10 to +1.34"
    assert interval_text(interval, unit="") == "+0.0062, 95 % interval −0.0010 to +0.0134"
    assert difference_text(-0.00001, unit="%") == "0.00 points"
    open_ended = Interval(0.01, -math.inf, math.inf, 0.95, "2 groups, at least 3 are needed", 9, 2)
    assert interval_text(open_ended, unit="%") == "+1.00 points, no interval (2 groups, at least 3 are needed)"
