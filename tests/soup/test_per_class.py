"""The class that lost most, and the gate on every class: against scikit-learn, and at the stated error rates."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import recall_score

from soup.gates import Check, Subject
from soup.per_class import Scores, bonferroni, per_class_gate, worst_class
from soup.statistics import paired_difference

SUBJECT = Subject("model.onnx", "best single → INT8", "onnxruntime on cpu")
ORDER = ["fail", "inconclusive", "pass"]


def right(labels: np.ndarray, lost: dict[int, int]) -> np.ndarray:
    """bool [n]: all right but for the first `lost[class]` images of a class."""
    correct = np.ones(len(labels), bool)
    for label, count in lost.items():
        correct[np.flatnonzero(labels == label)[:count]] = False
    return correct


def scores(
    lost: dict[int, int], *, images: int = 100, classes: int = 4, names: tuple[str, ...] | None = None
) -> Scores:
    """Every class right before, and so many images of some classes wrong after."""
    labels = np.repeat(np.arange(classes), images)
    return Scores(right(labels, lost), right(labels, {}), labels, names=names)


def gate(found: Scores, *, max_drop: float = 0.1, min_images: int = 10) -> Check:
    return per_class_gate(found, SUBJECT, max_drop=max_drop, min_images=min_images)


def test_the_scores_of_each_class_are_its_recall_as_scikit_learn_has_it() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 7, 500)
    before, after = (np.where(random.random(500) < share, labels, (labels + 1) % 7) for share in (0.9, 0.6))
    found = Scores(after == labels, before == labels, labels)
    drops = [found.of(label, confidence=0.95) for label in range(7)]
    assert [one.before for one in drops] == pytest.approx(recall_score(labels, before, average=None))
    assert [one.after for one in drops] == pytest.approx(recall_score(labels, after, average=None))
    expected = recall_score(labels, before, average=None) - recall_score(labels, after, average=None)
    assert found.losses == pytest.approx(expected)
    worst = worst_class(found)
    assert worst is not None
    assert worst.label == int(expected.argmax())


def test_the_worst_class_is_told_by_name_with_the_interval_of_all_classes_together() -> None:
    found = scores({1: 5, 2: 20}, names=("a", "b", "c", "d"))
    worst = worst_class(found)
    assert worst is not None
    assert (worst.name, worst.before, worst.after, worst.interval.n) == ("c", 1.0, 0.8, 100)
    assert worst.interval.confidence == bonferroni(4) == pytest.approx(0.9875)
    expected = paired_difference(right(np.zeros(100), {0: 20}), np.ones(100), confidence=bonferroni(4))
    assert worst.interval == expected


def test_no_class_is_worst_where_none_lost() -> None:
    assert worst_class(scores({})) is None
    nothing = np.zeros(0)
    assert worst_class(Scores(nothing, nothing, nothing.astype(int))) is None


def test_a_loss_that_rises_is_a_loss_and_nan_is_the_worst_of_all() -> None:
    labels = np.repeat([0, 1, 2], 20)
    before, after = np.full(60, 0.5), np.repeat([0.4, 0.9, 0.6], 20)
    found = Scores(after, before, labels, higher_is_better=False)
    worst = worst_class(found)
    assert worst is not None
    assert worst.label == 1
    assert gate(found, max_drop=0.2).verdict == "fail"
    broken = Scores(np.where(np.arange(60) == 45, np.nan, after), before, labels, higher_is_better=False)
    worst = worst_class(broken)
    assert worst is not None
    assert worst.label == 2
    assert math.isnan(worst.after)


def test_a_gate_on_every_class_reads_as_one_sentence() -> None:
    passed = gate(scores({2: 2}, images=200, names=("a", "b", "cat", "d")))
    assert (passed.verdict, passed.kind, passed.measured, passed.limit) == ("pass", "per_class", 0.01, 0.1)
    assert passed.message == (
        "a drop beyond 10.00 points is excluded in each of 4 classes; the worst is class 'cat' (200 images) "
        "−1.00 points, 95 % interval −3.57 to +0.90"
    )
    failed = gate(scores({2: 60, 3: 45}, names=("a", "b", "cat", "d")))
    assert failed.message == (
        "class 'cat' (100 images) −60.00 points, 98.75 % interval −71.30 to −47.53: the drop is beyond the limit of "
        "10.00 points (Bonferroni over 4 classes), and 1 more"
    )
    undecided = gate(scores({1: 8}))
    assert undecided.message == (
        "class '1' (100 images) −8.00 points, 95 % interval −15.00 to −4.00: a drop beyond 10.00 points is neither "
        "shown nor excluded; about 1,300 of its images would decide"
    )


def test_a_class_with_too_few_images_leaves_the_gate_open_and_says_how_many_would_do() -> None:
    labels = np.array([0] * 200 + [1] * 3)
    few = Scores(np.ones(203), np.ones(203), labels, names=("many", "few"))
    check = gate(few, min_images=20)
    assert (check.verdict, check.samples_needed) == ("inconclusive", 95)
    assert check.message == (
        "class 'few' (3 images) 0.00 points, 95 % interval −56.15 to +56.15: too few, the gate asks for 20; "
        "about 95 of its images would decide"
    )
    assert gate(Scores(np.ones(200), np.ones(200), labels[:200], names=("many", "none"))).verdict == "inconclusive"
    lost = Scores(right(labels, {0: 150}), np.ones(203), labels)
    assert gate(lost, min_images=20).verdict == "fail"


def test_a_class_of_exactly_as_many_images_as_asked_for_is_judged() -> None:
    assert gate(scores({}, images=100), min_images=100).verdict == "pass"
    assert gate(scores({}, images=100), min_images=101).verdict == "inconclusive"


def test_a_limit_next_to_what_was_lost_names_no_number_of_images() -> None:
    check = gate(scores({1: 10}), max_drop=0.1)
    assert (check.verdict, check.samples_needed) == ("inconclusive", None)
    assert check.message.endswith("is neither shown nor excluded")
    assert gate(scores({}), max_drop=8e-195).verdict == "inconclusive"


def test_no_images_at_all_and_nan_are_no_pass() -> None:
    nothing = np.zeros(0)
    assert gate(Scores(nothing, nothing, nothing.astype(int))).verdict == "inconclusive"
    labels = np.repeat([0, 1], 200)
    broken = Scores(np.where(np.arange(400) == 399, np.nan, 0.1), np.full(400, 0.1), labels, higher_is_better=False)
    check = gate(broken)
    assert (check.verdict, check.measured) == ("fail", None)
    assert "not a finite number" in check.message


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=3), st.floats(0, 0.5), st.floats(0, 0.5), st.integers(1, 60))
def test_a_wider_limit_or_a_lower_floor_of_images_never_makes_it_stricter(lost, max_drop, more, floor):
    found = scores(dict(enumerate(lost)), images=40, classes=len(lost))
    strict, lenient = gate(found, max_drop=max_drop), gate(found, max_drop=max_drop + more)
    assert ORDER.index(lenient.verdict) >= ORDER.index(strict.verdict)
    if floor > 40:
        assert gate(found, max_drop=max_drop, min_images=floor).verdict == "inconclusive"


def test_classes_that_lost_nothing_fail_the_gate_by_chance_no_more_often_than_stated() -> None:
    """20 classes, each exactly at the limit: without the correction most runs would show some class beyond it."""
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(20), 60)
    runs, failed, alone = 200, 0, 0
    for _ in range(runs):
        after = random.random(len(labels)) >= 0.1
        found = Scores(after, np.ones(len(labels)), labels)
        failed += gate(found).verdict == "fail"
        alone += any(found.of(label, confidence=0.95).interval.high < -0.1 for label in range(20))
    assert failed <= 0.05 * runs < alone
