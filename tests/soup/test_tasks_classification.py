"""Metrics of classification, against scikit-learn (correctness 33) and SciPy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax
from sklearn.metrics import accuracy_score, log_loss, top_k_accuracy_score

from soup import SoupError
from soup.tasks import metric_named
from soup.tasks.classification import METRICS, flips, margins, predictions

ACCURACY, TOP5, CROSS_ENTROPY = METRICS["accuracy"], METRICS["top5"], METRICS["cross_entropy"]


def scored(metric, scores, labels):
    return metric.per_sample({"output": np.asarray(scores)}, {"label": np.asarray(labels, np.int64)})


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 50),
    classes=st.integers(6, 12),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_metrics_agree_with_scikit_learn(seed, count, classes, dtype):
    """Correctness 33."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(count, classes)).astype(dtype) * 5
    labels = rng.integers(0, classes, count)
    known = np.arange(classes)
    probabilities = np.exp(log_softmax(scores.astype(np.float64), axis=1))
    assert ACCURACY.reduce(scored(ACCURACY, scores, labels)) == accuracy_score(labels, scores.argmax(axis=1))
    assert TOP5.reduce(scored(TOP5, scores, labels)) == pytest.approx(
        top_k_accuracy_score(labels, scores, k=5, labels=known)
    )
    ours = CROSS_ENTROPY.reduce(scored(CROSS_ENTROPY, scores, labels))
    assert ours == pytest.approx(log_loss(labels, probabilities, labels=known), rel=1e-9)


def test_a_tie_goes_to_the_lower_class():
    scores = np.array([[1.0, 1, 0, 1, 1, 1, 1]] * 7)
    assert scored(ACCURACY, scores, range(7))["correct"].tolist() == [True] + [False] * 6
    assert scored(TOP5, scores, range(7))["correct"].tolist() == [True, True, False, True, True, True, False]
    assert predictions({"output": scores}).tolist() == [0] * 7


def test_with_five_classes_or_fewer_every_image_is_in_the_top_five():
    assert scored(TOP5, [[0.0, 1.0, 2.0]], [0])["correct"].all()


@pytest.mark.parametrize("label", [0, 1, 2])
def test_a_row_with_nan_is_wrong_whatever_its_label(label):
    row = [[np.nan, 3.0, 1.0]]
    assert not scored(ACCURACY, row, [label])["correct"].any()
    assert not scored(TOP5, row, [label])["correct"].any()
    assert np.isnan(scored(CROSS_ENTROPY, row, [label])["loss"]).all()


def test_a_loss_of_nan_makes_the_value_nan():
    """So that no comparison accepts it (correctness 17)."""
    assert np.isnan(CROSS_ENTROPY.reduce(scored(CROSS_ENTROPY, [[0.0, 1.0], [np.inf, 0.0]], [0, 0])))


def test_cross_entropy_survives_large_logits():
    statistics = scored(CROSS_ENTROPY, np.float32([[1e4, 0.0], [-1e4, 3e4]]), [1, 1])
    assert statistics["loss"].tolist() == [1e4, 0.0]
    assert statistics["loss"].dtype == np.float64


def test_no_samples_have_no_value():
    for metric in METRICS.values():
        assert np.isnan(metric.reduce(scored(metric, np.empty((0, 3)), [])))


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 40), name=st.sampled_from(sorted(METRICS)))
def test_the_bound_is_never_passed_and_is_met_by_a_perfect_rest(seed, count, name):
    metric = METRICS[name]
    rng = np.random.default_rng(seed)
    statistics = scored(metric, rng.normal(size=(count, 7)), rng.integers(0, 7, count))
    seen = rng.random(count) < 0.5
    known = {key: np.where(seen, values, 0).astype(values.dtype) for key, values in statistics.items()}
    bound = metric.upper_bound(known, seen)
    value = metric.reduce(statistics)
    assert bound >= value if metric.higher_is_better else bound <= value
    perfect = {key: np.where(seen, values, key == "correct").astype(values.dtype) for key, values in statistics.items()}
    assert bound == metric.reduce(perfect)


def test_a_flip_is_another_class_or_none():
    before = {"output": np.array([[0, 1], [1, 0], [0, 1], [np.nan, 1], [np.nan, 1]])}
    after = {"output": np.array([[0, 2], [0, 1], [0, np.nan], [0, 1], [np.nan, 1]])}
    assert flips(before, after).tolist() == [False, True, True, True, True]


def test_the_margin_is_the_lead_of_the_first_class():
    scores = np.float32([[1, 5, 3], [2, 2, 0], [np.nan, 1, 0], [np.inf, np.inf, 0], [np.inf, 1, 0]])
    assert margins({"output": scores}).tolist() == [2, 0, 0, 0, np.inf]
    assert margins({"output": scores[:, :1]}).tolist() == [np.inf] * 5


def test_a_label_without_a_logit_is_refused():
    for metric in METRICS.values():
        with pytest.raises(SoupError, match="label 3, expected 0 to 2"):
            scored(metric, np.zeros((2, 3)), [0, 3])


@pytest.mark.parametrize("scores", [np.zeros(3), np.zeros((3, 0)), np.zeros((1, 3, 4))])
def test_an_output_that_is_no_table_of_logits_is_refused(scores):
    with pytest.raises(SoupError, match="expected logits"):
        scored(ACCURACY, scores, np.zeros(len(scores)))


def test_the_first_output_counts():
    outputs = {"scores": np.array([[0.0, 1.0]]), "features": np.zeros((1, 9))}
    assert ACCURACY.per_sample(outputs, {"label": np.array([1])})["correct"].all()


def test_metrics_are_found_by_name():
    assert metric_named("classification", "cross_entropy").higher_is_better is False
    with pytest.raises(
        SoupError, match="'f1' is not known for classification, expected one of accuracy, cross_entropy, top5"
    ):
        metric_named("classification", "f1")
    with pytest.raises(SoupError, match="'pose' is not known"):
        metric_named("pose", "accuracy")
