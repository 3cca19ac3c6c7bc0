"""One p-value per decision: against scipy, against the module's own intervals, and its level under simulated nulls."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, t

import soup.significance as significance
import soup.statistics as statistics
from soup.significance import p_value
from soup.statistics import paired_bootstrap, paired_difference

NOISE = 3  # standard errors that a simulated rate may lie above its level


def mean(arrays):
    return float(next(iter(arrays.values())).mean())


def p_of(after, before, *, higher=True, groups=None):
    return p_value({"s": after}, {"s": before}, mean, higher_is_better=higher, groups=groups)


def ceiling(level: float, runs: int) -> float:
    return level + NOISE * math.sqrt(level * (1 - level) / runs)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 60), st.integers(0, 60), st.integers(1, 300))
def test_right_or_wrong_is_judged_by_scipys_exact_binomial_tail(gained, lost, unchanged):
    after = np.repeat([True, False, True], [gained, lost, unchanged])
    before = np.repeat([False, True, True], [gained, lost, unchanged])
    expected = binomtest(gained, gained + lost, alternative="greater").pvalue if gained + lost else 1.0
    assert p_of(after, before) == (pytest.approx(expected, rel=1e-9), "exact McNemar test")
    assert p_of(before, after, higher=False)[0] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("level", [0.05, 0.01])
def test_exact_p_values_of_useless_candidates_are_small_no_more_often_than_they_say(level):
    """Correctness 32; the samples that differ are few, as between two soups of one search."""
    generator = np.random.default_rng(0)
    found = [p_of(*(generator.random((2, 200)) < 0.9))[0] for _ in range(2000)]
    assert np.mean(np.array(found) <= level) <= ceiling(level, 2000)


@pytest.mark.parametrize("clips", [8, 30])
def test_p_values_by_group_hold_their_level_where_frames_repeat(clips):
    """Ten identical frames to a clip: counted one by one they would prove anything."""
    generator, groups = np.random.default_rng(1), np.repeat(np.arange(clips), 10)
    by_group = alone = 0
    for _ in range(600):
        after, before = (generator.random((2, clips)) < 0.7).repeat(10, axis=1)
        by_group += p_of(after, before, groups=groups)[0] <= 0.05
        alone += p_of(after, before)[0] <= 0.05
    assert by_group / 600 <= ceiling(0.05, 600)
    assert alone / 600 > 0.15


@pytest.mark.parametrize("n", [5, 20, 60])
def test_p_values_of_real_scores_hold_their_level(n):
    scores = np.random.default_rng(2).normal(size=(600, n))
    found = np.array([p_of(row, np.zeros(n))[0] for row in scores])
    assert 0.02 <= np.mean(found <= 0.05) <= ceiling(0.05, 600)


def test_of_four_scores_a_small_p_is_students_and_not_the_normals():
    scores = np.random.default_rng(10).normal(size=(800, 4))
    found = np.array([p_of(row, np.zeros(4))[0] for row in scores])
    assert np.mean(found <= 0.02) <= ceiling(0.02, 800)


@pytest.mark.parametrize("gain", [0.0, 0.1, 0.25, 0.4, -0.2])
def test_a_p_value_under_half_of_five_percent_is_an_interval_above_zero(gain):
    generator = np.random.default_rng(3)
    for size in (12, 60):
        scores = generator.normal(gain, 0.5, size)
        interval = paired_difference(scores, np.zeros(size))
        p = p_of(scores, np.zeros(size))[0]
        assert abs(p - 0.025) < 0.002 or (p <= 0.025) == (interval.low > 0)


def test_a_better_candidate_has_a_small_p_whichever_way_the_metric_points():
    losses = np.random.default_rng(4).gamma(2.0, size=150)
    better = losses - np.random.default_rng(5).gamma(0.5, 0.3, size=150)
    assert p_of(better, losses, higher=False)[0] < 0.001
    assert p_of(losses, better, higher=False)[0] > 0.999


def test_a_metric_that_is_no_mean_is_resampled_through_its_own_reader():
    """A mean in disguise gives the p-value of the mean; the same resamples, by group."""
    generator, groups = np.random.default_rng(6), np.arange(60) // 4
    after, before = generator.normal(0.1, 1, 60), generator.normal(size=60)
    two = [{"sum": scores, "count": np.ones(60)} for scores in (after, before)]
    ratio = p_value(*two, lambda s: s["sum"].sum() / s["count"].sum(), higher_is_better=True, groups=groups)
    assert ratio == pytest.approx(p_of(after, before, groups=groups))
    interval = paired_bootstrap(lambda s: s["sum"].sum() / s["count"].sum(), *two, groups=groups)
    assert (ratio[0] <= 0.025) == (interval.low > 0)


@pytest.mark.parametrize("changed", [1, 2, 3])
def test_few_changed_groups_prove_what_as_many_tosses_of_a_coin_would(changed):
    """Most resamples hold one of the clips, and none shows a loss: the bootstrap alone would be surer."""
    before = np.zeros(100, bool)
    after = np.arange(100) < 5 * changed
    p, method = p_of(after, before, groups=np.arange(100) // 5)
    assert p == pytest.approx(0.5**changed, abs=0.03)
    assert method == "exchange of groups (McNemar)"


def test_blocks_that_bound_memory_change_no_p_by_more_than_the_draws(monkeypatch):
    after, before = np.random.default_rng(9).random((2, 120)) < 0.7
    whole = p_of(after, before, groups=np.arange(120) // 4)[0]
    monkeypatch.setattr(significance, "_BLOCK", 100)
    assert p_of(after, before, groups=np.arange(120) // 4)[0] == pytest.approx(whole, abs=0.05)


@pytest.mark.parametrize(
    ("scores", "groups", "words"),
    [
        (np.array([0.5, math.nan, 1.0]), None, "not a finite number"),
        (np.array([]), None, "no samples"),
        (np.array([0.5, 0.7]), None, "at least 3"),
        (np.linspace(1, 2, 40), np.arange(40) % 2, "2 groups"),
    ],
)
def test_what_cannot_be_judged_is_not_better(scores, groups, words):
    p, method = p_of(scores, np.zeros(len(scores)), groups=groups)
    assert p == 1.0
    assert words in method


def test_a_metric_undefined_on_a_resample_is_not_better():
    found = p_value(
        {"a": np.array([3.0, 1, 1, 1]), "b": np.ones(4)},
        {"a": np.zeros(4), "b": np.ones(4)},
        lambda s: float(s["a"].sum()) if (s["a"] != 1).any() else math.nan,
        higher_is_better=True,
    )
    assert found == (1.0, "the metric is undefined on some resamples")


def test_the_same_arguments_give_the_same_p_and_another_seed_another():
    after, before = {"s": np.random.default_rng(7).normal(0.1, 1, 50)}, {"s": np.zeros(50)}
    first, again, other = (p_value(after, before, mean, higher_is_better=True, seed=seed)[0] for seed in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 9, 50, 999])
def test_students_tail_is_scipys(freedom):
    for x in (-3.3, -0.4, 0.0, 1.0, 3.3):
        assert significance._t_tail(x, freedom=freedom) == pytest.approx(t.sf(x, freedom), rel=1e-9)


def test_a_p_value_is_never_below_what_the_resamples_can_show():
    scores = np.random.default_rng(8).normal(5, 0.1, 400)
    smallest = 1 / (statistics.RESAMPLES + 1)
    assert smallest <= p_of(scores, np.zeros(400))[0] < 1.1 * smallest
