"""Metrics in which classes count by themselves, against scikit-learn and torchmetrics (correctness 33)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, recall_score
from torchmetrics.functional.classification import multiclass_f1_score, multiclass_recall

from soup import SoupError
from soup.tasks import by_class
from soup.tasks.classification import metric

BALANCED, F1 = metric("balanced_accuracy", classes=5), metric("f1", classes=5)


def scored(one, scores, labels):
    return one.per_sample({"output": np.asarray(scores)}, {"label": np.asarray(labels, np.int64)})


def drawn(seed, count, *, classes=5, of=5):
    """Scores of all classes, and labels of the first `of` classes, unevenly."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(of, count, p=np.arange(1, of + 1) / np.arange(1, of + 1).sum())
    scores = rng.normal(size=(count, classes))
    scores[np.arange(count), labels] += 1
    return scores, labels


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 60), of=st.integers(1, 5))
def test_recalls_agree_with_scikit_learn(seed, count, of):
    scores, labels = drawn(seed, count, of=of)
    predicted = scores.argmax(axis=1)
    present = np.unique(labels)
    recalls = recall_score(labels, predicted, labels=present, average=None)
    statistics = scored(BALANCED, scores, labels)
    assert BALANCED.reduce(statistics) == pytest.approx(recalls.mean(), rel=1e-12)
    if set(predicted) <= set(labels) and len(present) > 1:  # else scikit-learn warns
        assert BALANCED.reduce(statistics) == pytest.approx(balanced_accuracy_score(labels, predicted), rel=1e-12)
    classwise = by_class(BALANCED, statistics)
    assert classwise[present].tolist() == pytest.approx(recalls.tolist())
    assert np.isnan(np.delete(classwise, present)).all()
    assert BALANCED.class_images(statistics).tolist() == np.bincount(labels, minlength=5).tolist()
    weights = np.random.default_rng(seed).integers(1, 5, 5).astype(float)
    weighted = metric("weighted_accuracy", weights=weights.tolist())
    of_images = weights[labels] / np.bincount(labels)[labels]
    expected = accuracy_score(labels, predicted, sample_weight=of_images)
    assert weighted.reduce(scored(weighted, scores, labels)) == pytest.approx(expected, rel=1e-12)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 60), of=st.integers(1, 5))
def test_f1_agrees_with_scikit_learn(seed, count, of):
    scores, labels = drawn(seed, count, of=of)
    predicted = scores.argmax(axis=1)
    statistics = scored(F1, scores, labels)
    assert F1.reduce(statistics) == pytest.approx(f1_score(labels, predicted, average="macro"), rel=1e-12)
    each = f1_score(labels, predicted, labels=np.arange(5), average=None, zero_division=0)
    assert by_class(F1, statistics)[np.unique(labels)].tolist() == pytest.approx(each[np.unique(labels)].tolist())
    assert np.isnan(np.delete(by_class(F1, statistics), np.unique(labels))).all()
    assert F1.class_images(statistics).tolist() == np.bincount(labels, minlength=5).tolist()


def test_both_agree_with_torchmetrics():
    scores, labels = drawn(0, 400)
    given_torch = torch.from_numpy(scores).float(), torch.from_numpy(labels)
    recall = multiclass_recall(*given_torch, num_classes=5, average="macro")
    f1 = multiclass_f1_score(*given_torch, num_classes=5, average="macro")
    assert BALANCED.reduce(scored(BALANCED, np.float32(scores), labels)) == pytest.approx(float(recall), abs=1e-6)
    assert F1.reduce(scored(F1, np.float32(scores), labels)) == pytest.approx(float(f1), abs=1e-6)


def test_a_rare_class_counts_as_much_as_a_common_one():
    scores = np.eye(2)[[0] * 9 + [0]]
    labels = [0] * 9 + [1]
    assert metric("accuracy").reduce(scored(metric("accuracy"), scores, labels)) == 0.9
    assert metric("balanced_accuracy").reduce(scored(metric("balanced_accuracy"), scores, labels)) == 0.5
    weighted = metric("weighted_accuracy", weights=[1, 3])
    assert weighted.reduce(scored(weighted, scores, labels)) == 0.25


def test_a_row_with_nan_is_no_class_and_wrong():
    statistics = scored(F1, [[np.nan, 1.0], [0.0, 1.0]], [1, 1])
    assert statistics["predicted"].tolist() == [-1, 1]
    assert F1.reduce(statistics) == pytest.approx(2 / 3)
    assert by_class(F1, statistics)[1] == pytest.approx(2 / 3)
    assert not scored(BALANCED, [[np.nan, 1.0]], [1])["right"].any()


@pytest.mark.parametrize("name", ["balanced_accuracy", "f1"])
@pytest.mark.parametrize("classes", [None, 5])
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 25))
def test_a_class_of_a_resample_is_worth_what_its_repeated_images_are(name, classes, seed, count):
    scores, labels = drawn(seed, count, of=3)
    one = metric(name, classes=classes)
    statistics = scored(one, scores, labels)
    counts = np.random.default_rng(seed).integers(0, 3, (4, count))
    classwise = one.resampled_by_class(statistics, counts)
    width = classes or labels.max() + 1  # whatever the model predicts
    assert classwise.shape == (4, width)
    for row, values in zip(counts, classwise, strict=True):
        rows = np.repeat(np.arange(count), row)
        again = by_class(metric(name, classes=width), {key: array[rows] for key, array in statistics.items()})
        assert np.array_equal(values, again, equal_nan=True)


def test_labels_and_weights_that_do_not_fit_are_refused():
    for one in (BALANCED, F1):
        with pytest.raises(SoupError, match="label 3, expected 0 to 2"):
            scored(one, np.zeros((2, 3)), [0, 3])
    weighted = metric("weighted_accuracy", weights=[1, 1])
    with pytest.raises(SoupError, match="label 2, expected 0 to 1, the classes that have a weight"):
        weighted.known({"label": np.array([2])})


@pytest.mark.parametrize(
    ("weights", "classes", "message"),
    [
        (None, None, "has 0 weights, expected one per class"),
        ([], 2, "has 0 weights, expected 2, one per class"),
        ([1.0], 2, "has 1 weights, expected 2"),
        ([1.0, -1.0], 2, "expected finite numbers from 0"),
        ([1.0, float("nan")], 2, "expected finite numbers from 0"),
        ([0.0, 0.0], None, "and one above"),
    ],
)
def test_what_are_no_weights_is_told(weights, classes, message):
    with pytest.raises(SoupError, match=message):
        metric("weighted_accuracy", weights=weights, classes=classes)


def test_classes_whose_weight_is_0_do_not_count():
    weighted = metric("weighted_accuracy", weights=[0, 1])
    assert weighted.reduce(scored(weighted, np.eye(2)[[1, 1]], [0, 1])) == 1
    assert np.isnan(weighted.reduce(scored(weighted, np.eye(2)[[0]], [0])))
