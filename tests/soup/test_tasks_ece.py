"""The expected calibration error, against torchmetrics and its definition written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from torchmetrics.functional.classification import multiclass_calibration_error

from soup import SoupError
from soup.tasks import by_class
from soup.tasks.classification import metric

ECE = metric("ece")


def scored(scores, labels, one=ECE):
    return one.per_sample({"output": np.asarray(scores)}, {"label": np.asarray(labels, np.int64)})


def hardness(outputs, targets):
    return ECE.difficulty(ECE.per_sample(outputs, targets), outputs, targets)


def drawn(seed, count, classes=4):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, classes)) * rng.choice([0.3, 2.0, 9.0]), rng.integers(0, classes, count)


def written_out(scores, labels, bins):
    """Guo et al. 2017, equation 3: bins ((m - 1) / M, m / M]."""
    confidence, right = softmax(scores, axis=1).max(axis=1), scores.argmax(axis=1) == labels
    total = 0.0
    for m in range(1, bins + 1):
        rows = (confidence > (m - 1) / bins) & (confidence <= m / bins)
        if rows.any():
            total += rows.mean() * abs(right[rows].mean() - confidence[rows].mean())
    return total


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 200), bins=st.sampled_from([1, 7, 15]))
def test_it_is_what_the_paper_defines(seed, count, bins):
    scores, labels = drawn(seed, count)
    one = metric("ece", bins=bins)
    assert one.reduce(scored(scores, labels, one)) == pytest.approx(written_out(scores, labels, bins), abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_it_agrees_with_torchmetrics(seed):
    scores, labels = drawn(seed, 500)
    probabilities = torch.from_numpy(softmax(scores, axis=1))
    expected = multiclass_calibration_error(
        probabilities, torch.from_numpy(labels), num_classes=4, n_bins=15, norm="l1"
    )
    assert ECE.reduce(scored(scores, labels)) == pytest.approx(float(expected), abs=1e-6)


def test_an_edge_belongs_to_the_bin_below():
    """Two classes of equal logits: a confidence of exactly 1/2, the upper edge of the first of two bins."""
    two = metric("ece", bins=2)
    logit = np.log(3.0)  # a confidence of 3/4
    statistics = scored([[0.0, 0.0], [logit, 0.0]], [0, 1], two)
    assert two.reduce(statistics) == pytest.approx((0.5 + 0.75) / 2)


def test_sure_and_right_is_0_and_sure_and_wrong_is_1():
    assert ECE.reduce(scored([[800.0, 0.0]] * 3, [0, 0, 0])) == 0
    assert ECE.reduce(scored([[800.0, 0.0]] * 3, [1, 1, 1])) == 1
    assert not ECE.higher_is_better


def test_few_images_of_a_calibrated_model_look_uncalibrated():
    """The bias that the docstring tells of: the mean over many small samples is far above the true 0."""
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.5, 1, 20000)
    scores = np.stack([np.log(confidence / (1 - confidence)), np.zeros(20000)], axis=1)
    statistics = scored(scores, (rng.random(20000) > confidence).astype(int))
    few = [ECE.reduce({key: array[at : at + 50] for key, array in statistics.items()}) for at in range(0, 20000, 50)]
    assert ECE.reduce(statistics) < 0.02
    assert np.mean(few) > 0.08


@pytest.mark.parametrize("row", [[np.nan, 0.0], [np.inf, 0.0], [-np.inf, np.nan]])
def test_what_is_not_finite_has_no_value(row):
    statistics = scored([row, [1.0, 0.0]], [0, 0])
    assert np.isnan(ECE.reduce(statistics))
    assert np.isnan(ECE.upper_bound(statistics, np.array([True, False])))
    assert np.isnan(ECE.worst_bound(statistics, np.array([True, False])))
    assert np.isfinite(hardness({"output": np.array([row])}, {"label": np.array([0])})).all()


def test_its_bound_is_met_by_images_that_close_the_gaps():
    """Ten images sure and wrong in the last of two bins: a right one just above 1/2 closes almost 1/2 each."""
    two = metric("ece", bins=2)
    wrong = scored([[800.0, 0.0]] * 10, [1] * 10, two)
    closing = scored([[1e-9, 0.0]] * 10, [0] * 10, two)
    both = {key: np.concatenate([wrong[key], closing[key]]) for key in wrong}
    seen = np.arange(20) < 10
    assert two.reduce(both) == pytest.approx(0.25)
    assert two.upper_bound(both, seen) == pytest.approx(0.25, abs=1e-8)
    assert two.upper_bound(both, seen) <= two.reduce(both)
    assert two.worst_bound(both, seen) == pytest.approx(1.0)


def test_hard_images_are_sure_and_wrong():
    outputs = {"output": np.array([[5.0, 0.0], [5.0, 0.0], [0.1, 0.0]])}
    hard = hardness(outputs, {"label": np.array([1, 0, 1])})
    assert np.argsort(-hard).tolist() == [0, 2, 1]


def test_it_has_no_classes():
    statistics = scored([[1.0, 0.0]], [0])
    assert by_class(ECE, statistics) is None
    assert ECE.resampled_by_class(statistics, np.ones((1, 1), int)) is None
    assert ECE.class_images(statistics) is None
    with pytest.raises(SoupError, match="label 2, expected 0 to 1"):
        scored([[1.0, 0.0]], [2])
