"""Metrics of images with any number of labels, against scikit-learn and torchmetrics (correctness 33)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, average_precision_score, f1_score
from torchmetrics.functional.classification import (
    multilabel_average_precision,
    multilabel_exact_match,
    multilabel_f1_score,
)

from soup import SoupError
from soup.tasks import by_class
from soup.tasks.classification import metric

NAMES = ("map", "f1", "f1_micro", "exact_match")
SEEDS = st.integers(0, 2**32 - 1)


def made(name, threshold=0.5):
    return metric(name, multilabel=True, threshold=threshold)


def drawn(rng, count, classes=4, *, rounded=True):
    """Logits with ties, as hard samples and coarse outputs have them, and labels that they partly tell."""
    truth = rng.random((count, classes)) < rng.choice([0.1, 0.4])
    scores = rng.normal(size=(count, classes)) + truth
    return {"output": (np.round(scores * 2) / 2 if rounded else scores).astype(np.float32)}, {"labels": truth}


def scored(name, scores, truth, threshold=0.5):
    one = made(name, threshold)
    return one, one.per_sample({"output": np.asarray(scores, np.float32)}, {"labels": np.asarray(truth, bool)})


@settings(max_examples=50, deadline=None)
@given(seed=SEEDS, count=st.integers(1, 40))
def test_average_precision_agrees_with_scikit_learn(seed, count):
    outputs, targets = drawn(np.random.default_rng(seed), count)
    truth, scores = targets["labels"], outputs["output"]
    one, statistics = scored("map", scores, truth)
    present = truth.any(axis=0)
    classwise = by_class(one, statistics)
    assert np.isnan(classwise[~present]).all()
    expected = [average_precision_score(truth[:, c], scores[:, c]) for c in np.flatnonzero(present)]
    assert classwise[present].tolist() == pytest.approx(expected, rel=1e-12)
    assert one.reduce(statistics) == pytest.approx(np.mean(expected) if expected else np.nan, rel=1e-12, nan_ok=True)
    assert one.class_images(statistics).tolist() == truth.sum(axis=0).tolist()


@settings(max_examples=50, deadline=None)
@given(seed=SEEDS, count=st.integers(1, 40), threshold=st.sampled_from([0.5, 0.2, 0.9]))
def test_f1_and_exact_match_agree_with_scikit_learn(seed, count, threshold):
    outputs, targets = drawn(np.random.default_rng(seed), count, rounded=False)
    truth, scores = targets["labels"], outputs["output"]
    predicted = 1 / (1 + np.exp(-scores.astype(np.float64))) > threshold
    for name, average in (("f1", "macro"), ("f1_micro", "micro")):
        one, statistics = scored(name, scores, truth, threshold)
        expected = f1_score(truth, predicted, average=average, zero_division=0)
        assert one.reduce(statistics) == pytest.approx(expected, rel=1e-12)
        each = f1_score(truth, predicted, average=None, zero_division=0)
        expected = np.where(truth.any(axis=0), each, np.nan)
        assert by_class(one, statistics) == pytest.approx(expected, rel=1e-12, nan_ok=True)
        assert one.class_images(statistics).tolist() == truth.sum(axis=0).tolist()
    one, statistics = scored("exact_match", scores, truth, threshold)
    assert one.reduce(statistics) == accuracy_score(truth, predicted)


def test_all_agree_with_torchmetrics():
    outputs, targets = drawn(np.random.default_rng(1), 300, rounded=False)
    scores, truth = outputs["output"], targets["labels"]
    given_torch = torch.from_numpy(scores), torch.from_numpy(truth).int()
    expected = {
        "map": multilabel_average_precision(*given_torch, num_labels=4, average="macro"),
        "f1": multilabel_f1_score(*given_torch, num_labels=4, average="macro"),
        "f1_micro": multilabel_f1_score(*given_torch, num_labels=4, average="micro"),
        "exact_match": multilabel_exact_match(*given_torch, num_labels=4),
    }
    for name, value in expected.items():
        one, statistics = scored(name, scores, truth)
        assert one.reduce(statistics) == pytest.approx(float(value), abs=1e-6)


def test_values_by_hand():
    """Class 0: order + - +: AP = (1 + 2/3) / 2. Class 1: a tie of + and -: 1/2. Class 2 has no image."""
    scores = [[3, 1, -5], [2, 1, -5], [1, -9, -5]]
    truth = [[1, 1, 0], [0, 0, 0], [1, 0, 0]]
    one, statistics = scored("map", scores, truth)
    assert by_class(one, statistics) == pytest.approx([5 / 6, 1 / 2, np.nan], nan_ok=True)
    assert one.reduce(statistics) == pytest.approx(2 / 3)
    one, statistics = scored("f1", scores, truth)
    assert by_class(one, statistics) == pytest.approx([0.8, 2 / 3, np.nan], nan_ok=True)
    assert one.reduce(statistics) == pytest.approx((0.8 + 2 / 3) / 3)  # class 2 counts as 0
    one, statistics = scored("exact_match", scores, truth)
    assert statistics["correct"].tolist() == [True, False, True]


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None)
@given(seed=SEEDS, count=st.integers(1, 25))
def test_a_resample_is_worth_what_its_repeated_images_are(name, seed, count):
    rng, one = np.random.default_rng(seed), made(name)
    outputs, targets = drawn(rng, count)
    outputs["output"][rng.random(count) < 0.05, 1] = np.nan
    statistics = one.per_sample(outputs, targets)
    counts = rng.integers(0, 4, (5, count))
    counts[0], counts[1] = 1, 0
    drawn_values = one.resampled(statistics, counts)
    classwise = one.resampled_by_class(statistics, counts)
    for at, row in enumerate(counts):
        rows = np.repeat(np.arange(count), row)
        repeated = {key: array[rows] for key, array in statistics.items()}
        assert drawn_values[at] == pytest.approx(one.reduce(repeated), rel=1e-12, nan_ok=True)
        if classwise is not None:
            assert classwise[at] == pytest.approx(by_class(one, repeated), rel=1e-12, nan_ok=True)
    assert np.isnan(drawn_values[1])
    assert (classwise is None) == (name == "exact_match")


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, count=st.integers(1, 15))
def test_no_rest_of_the_images_passes_a_bound_and_the_best_rest_meets_it(name, seed, count):
    rng, one = np.random.default_rng(seed), made(name)
    outputs, targets = drawn(rng, count)
    statistics, seen = one.per_sample(outputs, targets), rng.random(count) < 0.5
    hidden = {
        key: np.where(seen.reshape(-1, *[1] * (array.ndim - 1)), array, 0).astype(array.dtype)
        for key, array in statistics.items()
    } | one.known(targets)
    best, worst = one.upper_bound(hidden, seen), one.worst_bound(hidden, seen)
    signs = np.where(targets["labels"], 1, -1)
    apart = 50 + np.arange(count)[:, None]
    for kind in range(6):
        other = (signs * apart, -signs * apart)[kind] if kind < 2 else rng.normal(size=signs.shape) * 3
        scores = np.where(seen[:, None], outputs["output"], other.astype(np.float32))
        value = one.reduce(one.per_sample({"output": scores}, targets))
        if np.isnan(value):
            continue
        assert worst <= value <= best
        if kind < 2:
            assert value == pytest.approx((best, worst)[kind], abs=1e-11)


def test_logits_of_nan():
    """They rank nothing: no mean of precisions accepts them; elsewhere they predict no label, and match nothing."""
    scores, truth = [[np.nan, 1], [1, 1]], [[0, 1], [1, 0]]
    one, statistics = scored("map", scores, truth)
    assert np.isnan(one.reduce(statistics))
    assert by_class(one, statistics) == pytest.approx([np.nan, 0.5], nan_ok=True)
    one, statistics = scored("f1", scores, truth)
    assert statistics["predicted"].tolist() == [[False, True], [True, True]]
    one, statistics = scored("exact_match", scores, truth)
    assert statistics["correct"].tolist() == [False, False]
    assert made("f1").unsettled({"output": np.array([[np.nan, 9.0], [9.0, 9.0]])}, 0.1).tolist() == [True, False]


def test_infinite_logits_rank_first_and_last():
    one, statistics = scored("map", [[np.inf], [-np.inf], [0]], [[1], [0], [1]])
    assert one.reduce(statistics) == 1


@pytest.mark.parametrize("name", ["f1", "f1_micro", "exact_match"])
@settings(max_examples=25, deadline=None)
@given(seed=SEEDS, error=st.sampled_from([0.01, 0.3, 2.0]))
def test_a_settled_image_keeps_its_statistic_whatever_the_error(name, seed, error):
    rng, one = np.random.default_rng(seed), made(name, 0.3)
    outputs, targets = drawn(rng, 20, rounded=False)
    settled = ~one.unsettled(outputs, error)
    noise = error * rng.choice([-0.999, 0.999], size=outputs["output"].shape)
    after = one.per_sample({"output": outputs["output"] + noise}, targets)
    for key, array in one.per_sample(outputs, targets).items():
        assert np.array_equal(array[settled], after[key][settled])


def test_margins_moves_and_difficulty_are_about_the_threshold():
    before = {"output": np.array([[2.0, -0.5], [-1.0, 4.0], [np.nan, 3.0]])}
    after = {"logits": np.array([[2.0, 0.5], [-1.0, 4.0], [-1.0, 3.0]])}
    targets = {"labels": np.array([[True, True], [False, True], [True, True]])}
    for name in NAMES:
        one = made(name)
        assert one.task.answers(before, targets) is before
        assert one.task.margins(before, before).tolist() == [0.5, 1.0, 0.0]
        assert one.difficulty(one.per_sample(before, targets), before, targets).tolist() == [0.5, -1.0, 0.0]
        moves = one.task.moves(before, after)
        assert moves.changed.tolist() == [True, False, True]
        assert moves.figures == {"flips": 2.0, "flipped_share": 2 / 3, "labels": 2.0}
        assert moves.text == "2 of 3 images, 2 of 6 labels changed"
    assert made("f1", 0.9).task.margins(before, before)[0] == pytest.approx(np.log(9) - 2.0)
    assert made("map").unsettled(before, 0.0) is None


def test_a_label_at_the_threshold_is_not_predicted():
    _, statistics = scored("f1", [[0.0, 1e-6]], [[0, 1]])
    assert statistics["predicted"].tolist() == [[False, True]]


@pytest.mark.parametrize("name", NAMES)
def test_no_images_have_no_value(name):
    one, statistics = scored(name, np.empty((0, 3)), np.empty((0, 3)))
    assert np.isnan(one.reduce(statistics))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("classes", [2, 4])
def test_other_classes_than_the_models_are_refused(name, classes):
    with pytest.raises(SoupError, match=f"{classes} classes, expected 3, the outputs of the model"):
        scored(name, np.zeros((2, 3)), np.zeros((2, classes)))
