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
from soup.tasks.classification import METRICS, flips, margins, metric, predictions

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
    for one in [*METRICS.values(), *map(made, SINGLE)]:
        assert np.isnan(one.reduce(scored(one, np.empty((0, 7)), [])))


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
    for one in [*METRICS.values(), *map(made, SINGLE)]:
        with pytest.raises(SoupError, match="label 3, expected 0 to 2"):
            scored(one, np.zeros((2, 3)), [0, 3])


@pytest.mark.parametrize("scores", [np.zeros(3), np.zeros((3, 0)), np.zeros((1, 3, 4))])
def test_an_output_that_is_no_table_of_logits_is_refused(scores):
    with pytest.raises(SoupError, match="expected logits"):
        scored(ACCURACY, scores, np.zeros(len(scores)))


def test_the_first_output_counts():
    outputs = {"scores": np.array([[0.0, 1.0]]), "features": np.zeros((1, 9))}
    assert ACCURACY.per_sample(outputs, {"label": np.array([1])})["correct"].all()


SINGLE = ("accuracy", "top3", "cross_entropy", "balanced_accuracy", "weighted_accuracy", "f1", "ece")


def made(name):
    return metric(name, classes=7, weights=[1, 2, 0, 3, 1, 1, 5])


def answered(rng, count, *, sharp=3.0):
    labels = rng.integers(0, 7, count)
    scores = rng.normal(size=(count, 7)).astype(np.float32) * sharp
    scores[np.arange(count), labels] += sharp
    return {"output": scores}, {"label": labels}


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 30), name=st.sampled_from(SINGLE))
def test_a_resample_is_worth_what_its_repeated_images_are(seed, count, name):
    rng, one = np.random.default_rng(seed), made(name)
    statistics = one.per_sample(*answered(rng, count))
    counts = rng.integers(0, 4, (5, count))
    counts[0] = 1
    counts[1, rng.integers(0, count)] += 1  # never all 0
    drawn = one.resampled(statistics, counts)
    assert drawn.shape == (5,)
    assert drawn.dtype == np.float64
    for row, value in zip(counts, drawn, strict=True):
        rows = np.repeat(np.arange(count), row)
        again = one.reduce({key: array[rows] for key, array in statistics.items()})
        assert value == pytest.approx(again, rel=1e-12, abs=1e-15, nan_ok=True)
    if name in ("accuracy", "top3", "balanced_accuracy", "f1"):
        assert drawn[0] == one.reduce(statistics)  # to the bit


def test_a_resample_of_no_images_has_no_value():
    for name in SINGLE:
        statistics = made(name).per_sample(*answered(np.random.default_rng(0), 4))
        assert np.isnan(made(name).resampled(statistics, np.zeros((2, 4), int))).all()
        assert made(name).resampled(statistics, np.zeros((0, 4), int)).shape == (0,)


def test_a_resample_is_nan_where_an_image_in_it_is():
    for name, loss in (("cross_entropy", np.nan), ("ece", np.nan), ("accuracy", 0.0)):
        outputs = {"output": np.array([[np.nan, 1.0], [9.0, -9.0]])}
        statistics = metric(name).per_sample(outputs, {"label": np.array([1, 0])})
        first, second = metric(name).resampled(statistics, np.array([[2, 0], [0, 2]]))
        assert first == pytest.approx(loss, nan_ok=True)
        assert np.isfinite(second)


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 20), name=st.sampled_from(SINGLE))
def test_no_rest_of_the_images_passes_a_bound(seed, count, name):
    """What targets alone decide is known of the unseen images; all else of them may come out as it likes."""
    rng, one = np.random.default_rng(seed), made(name)
    outputs, targets = answered(rng, count, sharp=rng.choice([0.5, 3.0]))
    statistics, seen = one.per_sample(outputs, targets), rng.random(count) < 0.5
    hidden = {key: np.where(seen, array, 0).astype(array.dtype) for key, array in statistics.items()}
    hidden |= one.known(targets)
    best, worst = one.upper_bound(hidden, seen), one.worst_bound(hidden, seen)
    for kind in range(6):
        other = np.where(seen[:, None], outputs["output"], rng.normal(size=(count, 7)).astype(np.float32) * 20)
        if kind < 2:  # all right, all wrong
            target = targets["label"] if kind == 0 else (targets["label"] + rng.integers(1, 7, count)) % 7
            other = np.where(seen[:, None], outputs["output"], 50 * np.eye(7, dtype=np.float32)[target])
        value = one.reduce(one.per_sample({"output": other}, targets))
        if np.isnan(value):  # all weights of these classes are 0
            continue
        assert best >= value if one.higher_is_better else best <= value
        if worst is not None:
            assert worst <= value if one.higher_is_better else worst >= value
        if kind == 0 and name != "ece":
            assert best == pytest.approx(value, abs=1e-11)


def test_all_metrics_of_one_class_ask_and_tell_the_same():
    rng = np.random.default_rng(3)
    outputs, targets = answered(rng, 9)
    renamed = {"logits": outputs["output"].copy()}
    renamed["logits"][2] = np.roll(renamed["logits"][2], 1)
    for name in SINGLE:
        one = made(name)
        assert one.task.answers(outputs, targets) is outputs
        assert one.task.margins(outputs, outputs).tolist() == margins(outputs).tolist()
        moves = one.task.moves(outputs, renamed)
        assert moves.changed.tolist() == [row == 2 for row in range(9)]
        assert moves.figures == {"flips": 1.0, "flipped_share": 1 / 9}
        assert moves.text == "1 of 9 images changed class"
        assert one.difficulty(one.per_sample(outputs, targets), outputs, targets).dtype == np.float32
        assert all(array.shape[0] == 9 for array in one.per_sample(outputs, targets).values())
        assert one.known(targets).keys() <= one.per_sample(outputs, targets).keys()


@pytest.mark.parametrize("name", [name for name in SINGLE if name not in ("cross_entropy", "ece")])
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), error=st.sampled_from([0.01, 0.3, 2.0]))
def test_a_settled_image_keeps_its_statistic_whatever_the_error(name, seed, error):
    rng, one = np.random.default_rng(seed), made(name)
    outputs, targets = answered(rng, 20)
    settled = ~one.unsettled(outputs, error)
    before = one.per_sample(outputs, targets)
    noise = error * rng.choice([-0.999, 0.999], size=outputs["output"].shape)
    after = one.per_sample({"output": outputs["output"] + noise}, targets)
    for key, array in before.items():
        assert np.array_equal(array[settled], after[key][settled])


def test_rounding_changes_losses_and_confidences():
    assert [made(name).unsettled({"output": np.zeros((2, 7))}, 0.0) for name in ("cross_entropy", "ece")] == [None] * 2


@pytest.mark.parametrize("k", [2, 3, 5, 20])
def test_any_number_of_ranks_agrees_with_scikit_learn(k):
    rng = np.random.default_rng(k)
    scores, labels = rng.normal(size=(200, 30)), rng.integers(0, 30, 200)
    one = metric(f"top{k}")
    assert one.name == f"top{k}"
    expected = top_k_accuracy_score(labels, scores, k=k, labels=np.arange(30))
    assert one.reduce(scored(one, scores, labels)) == pytest.approx(expected)


def test_metrics_are_found_by_name():
    assert metric_named("classification", "cross_entropy").higher_is_better is False
    assert metric("accuracy") is ACCURACY
    assert metric("cross_entropy") is CROSS_ENTROPY
    assert metric("top5") == TOP5
    for name in SINGLE:
        assert made(name).name == name
    names = r"accuracy, balanced_accuracy, cross_entropy, ece, f1, top5 \(or any number\), weighted_accuracy"
    for name in ("map", "top0", "top", "topaz", "top-1", "f1_micro", "Accuracy"):
        with pytest.raises(SoupError, match=f"'{name}' is not known for classification, expected one of {names}"):
            metric(name)
    for name in ("accuracy", "top5", "ece"):
        message = (
            f"'{name}' is not known for classification with several labels, expected one of exact_match, f1, f1_mi"
        )
        with pytest.raises(SoupError, match=message):
            metric(name, multilabel=True)
    with pytest.raises(SoupError, match="'pose' is not known"):
        metric_named("pose", "accuracy")


def test_settings_that_a_metric_cannot_have_are_refused():
    with pytest.raises(SoupError, match="'ece' with 0 bins, expected 1 to 1000"):
        metric("ece", bins=0)
    with pytest.raises(SoupError, match=r"threshold 1\.0, expected a probability between 0 and 1"):
        metric("f1", multilabel=True, threshold=1.0)
    assert metric("accuracy", bins=0) is ACCURACY  # which does not read them
