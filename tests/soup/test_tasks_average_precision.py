"""Average precision against COCOeval, literal loops of the VOC formulas and repeated rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import soup.tasks.average_precision as module
from soup.tasks.average_precision import average_precisions
from soup.tasks.resamples import once

SEEDS = st.integers(0, 2**32 - 1)
READINGS = ("101 points", "11 points", "area")


def table(fates, truths, *, scores=None, ignored=(), thresholds=1):
    """Statistics of one class; `fates` holds each image's detections by falling score: 1 matched, 0 not, in bits."""
    depth = max(len(one) for one in fates)
    n = len(fates)
    label, score = np.full((n, depth), -1, np.int32), np.full((n, depth), -1, np.float32)
    matched, passive = np.zeros((n, depth), np.uint16), np.zeros((n, depth), np.uint16)
    for image, one in enumerate(fates):
        label[image, : len(one)], matched[image, : len(one)] = 0, one
        score[image, : len(one)] = np.linspace(0.9, 0.1, len(one)) if scores is None else scores[image]
    for image, place in ignored:
        passive[image, place] = (1 << thresholds) - 1
    return {
        "score": score, "label": label, "matched": matched, "ignored": passive,
        "positives": np.array(truths, np.int32).reshape(n, 1),
    }  # fmt: skip


def value(statistics, reading="101 points", thresholds=1):
    return average_precisions(statistics, once(len(statistics["label"])), thresholds=thresholds, reading=reading)[0]


def random_table(seed, *, images=6, depth=10, classes=3, thresholds=10, ties=True, ignored=0.1):
    """Statistics that matching could give: matches at a threshold are no more than the truth."""
    rng = np.random.default_rng(seed)
    label = rng.integers(-1, classes, (images, depth))
    score = np.round(rng.random((images, depth)), 1 if ties else 7)
    reach = rng.integers(0, thresholds + 1, (images, depth)) * (rng.random((images, depth)) < 0.6)
    matched = ((1 << reach) - 1).astype(np.uint16)
    passive = rng.integers(0, 1 << thresholds, (images, depth)) * (rng.random((images, depth)) < ignored)
    everywhere = rng.random((images, depth)) < ignored / 2
    positives = np.stack([((label == one) & (reach > 0)).sum(axis=1) for one in range(classes)], axis=1)
    return {
        "score": np.where(label >= 0, score, -1).astype(np.float32), "label": label.astype(np.int32),
        "matched": matched, "ignored": np.where(everywhere, (1 << thresholds) - 1, passive).astype(np.uint16),
        "positives": (positives + rng.integers(0, 2, positives.shape)).astype(np.int32),
    }  # fmt: skip


def literal(statistics, label, threshold, reading):
    """AP of one class at one threshold, one detection after the other; NaN without truth."""
    truths = int(statistics["positives"][:, label].sum())
    if not truths:
        return np.nan
    ranking = [
        (-float(score), image, place)
        for (image, place), score in np.ndenumerate(statistics["score"])
        if statistics["label"][image, place] == label
    ]
    found, seen, points = 0, 0, []
    for _, image, place in sorted(ranking):
        if statistics["ignored"][image, place] >> threshold & 1:
            continue
        seen += 1
        found += int(statistics["matched"][image, place] >> threshold & 1)
        rounding = 2.0**-52 if reading == "101 points" else 0.0
        points.append((found / truths, found / (seen + rounding)))
    if reading == "area":
        recalls = sorted({recall for recall, _ in points} - {0.0})
        edges = [0.0, *recalls]
        return sum(
            (edges[k + 1] - edges[k]) * max(precision for recall, precision in points if recall >= edges[k + 1])
            for k in range(len(recalls))
        )
    wanted = np.linspace(0, 1, 101) if reading == "101 points" else np.arange(11) / 10
    best = [max((precision for recall, precision in points if recall >= one), default=0.0) for one in wanted]
    return sum(best) / len(best)


@settings(max_examples=100, deadline=None)
@given(SEEDS, st.sampled_from(READINGS), st.booleans(), st.sampled_from([1, 3]), st.sampled_from([0.0, 0.3]))
def test_ap_is_that_of_the_literal_formula(seed, reading, ties, classes, ignored):
    statistics = random_table(seed, classes=classes, ties=ties, ignored=ignored, thresholds=4)
    expected = [np.mean([literal(statistics, one, t, reading) for t in range(4)]) for one in range(classes)]
    np.testing.assert_allclose(value(statistics, reading, thresholds=4), expected, atol=1e-12)


def repeated(statistics, counts):
    return {name: np.repeat(array, counts, axis=0) for name, array in statistics.items()}


@settings(max_examples=100, deadline=None)
@given(SEEDS, st.sampled_from(READINGS), st.booleans(), st.sampled_from([0.0, 0.3]), st.sampled_from([1, 70]))
def test_counts_are_repeated_rows(seed, reading, ties, ignored, draws):
    """With few draws and with so many that rows are accumulated one by one; images that are not drawn, too."""
    statistics = random_table(seed, ties=ties, ignored=ignored, thresholds=5)
    counts = np.random.default_rng(seed).integers(0, 4, (draws, 6))
    counts[0] = 0
    values = average_precisions(statistics, counts, thresholds=5, reading=reading)
    for count, row in list(zip(counts, values, strict=True))[: 1 + draws // 10]:
        np.testing.assert_allclose(row, value(repeated(statistics, count), reading, thresholds=5), atol=1e-12)


def test_copies_of_an_image_whose_detections_tie_take_turns():
    """Match, alarm, match, alarm: precision 1, then 2/3; not match, match, alarm, alarm."""
    statistics = table([[1, 0]], [1], scores=[[0.5, 0.5]])
    twice = average_precisions(statistics, np.array([[2]]), thresholds=1, reading="area")[0, 0]
    assert twice == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert twice == pytest.approx(value(repeated(statistics, [2]), "area")[0])


def test_blocks_of_draws_do_not_change_the_values(monkeypatch):
    statistics = random_table(5)
    counts = np.random.default_rng(0).integers(0, 3, (90, 6))
    at_once = average_precisions(statistics, counts, thresholds=10, reading="101 points")
    monkeypatch.setattr(module, "_BLOCK", 40)
    few = average_precisions(statistics, counts, thresholds=10, reading="101 points")
    np.testing.assert_allclose(few, at_once, atol=1e-12)


def test_textbook_rankings():
    """Two truths; found first and third: precision 1 up to recall 1/2, 2/3 up to recall 1."""
    statistics = table([[1, 0, 1]], [2])
    assert value(statistics, "area")[0] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert value(statistics, "11 points")[0] == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)
    assert value(statistics, "101 points")[0] == pytest.approx((51 * 1 + 50 * 2 / 3) / 101)


def test_recall_that_is_a_tenth_exactly_reaches_its_point():
    """Three of ten are recall 0.3: points 0, 0.1, 0.2 and 0.3, also where 3 * 0.1 would be more in binary."""
    assert value(table([[1, 1, 1]], [10]), "11 points")[0] == pytest.approx(4 / 11)


def test_an_ignored_detection_is_as_if_it_were_not_there():
    with_it, without = table([[1, 0, 1]], [2], ignored=[(0, 1)]), table([[1, 1]], [2])
    for reading in READINGS:
        assert value(with_it, reading)[0] == pytest.approx(value(without, reading)[0])


def test_equal_scores_rank_by_image():
    alarm_first = table([[0], [1]], [0, 1], scores=[[0.5], [0.5]])
    match_first = table([[1], [0]], [1, 0], scores=[[0.5], [0.5]])
    assert [value(one, "area")[0] for one in (alarm_first, match_first)] == [0.5, 1.0]


def test_a_class_without_truth_has_no_ap_and_one_without_detections_has_none_found():
    statistics = {
        **table([[0]], [0]),
        "positives": np.array([[0, 2]], np.int32),
    }
    assert np.isnan(value(statistics)[0])
    assert value(statistics)[1] == 0
    assert np.isnan(average_precisions(statistics, np.array([[0]]), thresholds=1, reading="area")).all()
    nobody = {name: array[:0] for name, array in statistics.items()}
    assert np.isnan(average_precisions(nobody, once(0), thresholds=1, reading="area")).all()
