"""When one value beats another (correctness 17 and 29, and how sure one must be)."""

from __future__ import annotations

import math

import numpy as np
import pytest

from soup.evaluate import Evaluation
from soup.significance import p_value
from soup.tasks import metric_named
from soup.trials import Bar, Rule
from soup.weights import weights_key


def scored(value: float | None, *, bound: float | None = None) -> Evaluation:
    return Evaluation(4, np.ones(4, bool), {}, value, bound)


def correct(right: int, total: int = 100, *, shift: int = 0) -> Evaluation:
    """Right on `right` samples, the first of them at `shift`."""
    bits = np.zeros(total, bool)
    bits[np.arange(shift, shift + right) % total] = True
    return Evaluation(total, np.ones(total, bool), {"correct": bits}, right / total, None)


def exact(candidate: Evaluation, incumbent: Evaluation) -> float:
    metric = metric_named("classification", "accuracy")
    return p_value(candidate.per_sample, incumbent.per_sample, metric.reduce, higher_is_better=True)[0]


def test_an_equal_score_is_kept_and_a_lower_one_is_worse() -> None:
    rule = Rule(True)
    assert rule.verdict(scored(0.5), scored(0.5)) == "kept"
    assert rule.verdict(scored(0.49), scored(0.5)) == "worse"
    assert rule.verdict(scored(None, bound=0.49), scored(0.5)) == "worse"


def test_nan_is_never_kept_whether_it_was_measured_to_the_end_or_not() -> None:
    for rule in (Rule(True), Rule(False)):
        assert rule.verdict(scored(math.nan), scored(0.5)) == "not_a_number"
        assert rule.verdict(scored(None, bound=math.nan), scored(0.5)) == "not_a_number"


def test_with_a_confidence_a_gain_that_chance_explains_is_within_noise() -> None:
    """90 against 91 of 100: by McNemar's exact test one changed sample is a coin's toss."""
    rule = Rule(True, confidence=0.95, p_value=exact)
    assert rule.verdict(correct(91), correct(90)) == "within_noise"
    assert rule.verdict(correct(96), correct(90)) == "kept"  # six gained, none lost: 1/64
    assert rule.verdict(correct(89), correct(90)) == "worse"
    assert Rule(True, p_value=exact).verdict(correct(91), correct(90)) == "kept"


@pytest.mark.parametrize("higher", [True, False])
def test_the_bar_is_the_incumbents_value_and_never_above_what_the_rule_accepts(higher: bool) -> None:
    incumbent = scored(0.91)
    assert Rule(higher).bar(incumbent) == Bar(0.91, incumbent)
    for min_gain in (0.01, 0.07, 0.1):
        rule = Rule(higher, min_gain)
        bar = rule.bar(incumbent).value
        assert bar is not None
        sign = 1 if higher else -1
        for count in range(1001):
            value = count / 1000
            if rule.accepts(value, 0.91):
                assert sign * value >= sign * bar
        assert not rule.accepts(bar - sign * 1e-9, 0.91)


def test_weights_are_the_same_in_whatever_order_they_come() -> None:
    assert weights_key({"a": 1, "b": {"x": 0.5, "": 1.0}}) == weights_key({"b": {"": 1.0, "x": 0.5}, "a": 1.0})
    assert weights_key({"a": 1.0}) != weights_key({"a": 2.0})
