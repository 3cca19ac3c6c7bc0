"""Detection metrics against pycocotools and torchmetrics, their bounds against what can be reached, golden tables."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.detection import MeanAveragePrecision

from soup import SoupError
from soup.tasks import by_class
from soup.tasks.detection import metrics
from soup.tasks.resamples import once
from soup.tasks.suppression import Suppression
from tests.soup.box_sets import coco_eval, listed, scene

SEEDS = st.integers(0, 2**32 - 1)
COCO = ("map", "map50", "map75", "map_small", "map_medium", "map_large")  # in the order of COCOeval.stats
VOC = ("voc_map", "voc_map07")
EVERY = metrics(Suppression(score=0.05), 3)
A, B = (0, 0, 20, 20), (100, 100, 200, 200)


def reduced(name, answers, targets):
    return EVERY[name].reduce(EVERY[name].per_sample(answers, targets))


def rows(statistics, chosen):
    return {name: array[chosen] for name, array in statistics.items()}


@settings(max_examples=120, deadline=None)
@given(SEEDS, st.sampled_from([1, 5]), st.sampled_from([1, 6]), st.sampled_from([1, 12]), st.sampled_from([0.0, 0.3]))
def test_coco_values_are_those_of_cocoeval(seed, images, truths, found, crowd):
    answers, targets = scene(seed, images=images, truths=truths, found=found, crowd=crowd)
    evaluation = coco_eval(answers, targets, 3)
    ours = [reduced(name, answers, targets) for name in COCO]
    theirs = np.where(evaluation.stats[:6] < 0, np.nan, evaluation.stats[:6])
    np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_a_match_beyond_the_hundred_best_of_its_image_and_class_is_lost_for_coco_alone():
    found = [[*[(A, 0.9, 0)] * 100, (B, 0.8, 0)]]
    answers, targets = listed([[(B, 0)]], found)
    assert reduced("map", answers, targets) == coco_eval(answers, targets, 3).stats[0] == 0
    assert reduced("voc_map", answers, targets) == pytest.approx(1 / 101)


@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_values_by_class_are_those_of_cocoeval(seed):
    answers, targets = scene(seed, images=8)
    precision = coco_eval(answers, targets, 3).eval["precision"][..., 2]  # thresholds, recalls, classes, ranges
    for name, thresholds, area in (("map", slice(None), 0), ("map75", slice(5, 6), 0), ("map_small", slice(None), 1)):
        expected = precision[thresholds, :, :, area].mean(axis=(0, 1))
        ours = by_class(EVERY[name], EVERY[name].per_sample(answers, targets))
        np.testing.assert_allclose(ours, np.where(expected < 0, np.nan, expected), atol=1e-12)


def test_torchmetrics_agrees():
    """With the thresholds as pycocotools has them: its own, in float32, take a recall of 1/5 for less than 0.2.

    On boxes off the grid and off the limits of sizes, since it turns corners into sides in float32.
    """
    answers, targets = scene(2, images=20, ties=False, step=0.01)
    for boxes in (answers["boxes"], targets["boxes"]):
        boxes *= np.float32(1.0307)
    targets["area"] *= np.float32(1.0307**2)
    theirs = MeanAveragePrecision(
        class_metrics=True,
        iou_thresholds=np.linspace(0.5, 0.95, 10).tolist(),
        rec_thresholds=np.linspace(0, 1, 101).tolist(),
    )
    real = [answers["labels"] >= 0, targets["labels"] >= 0]
    for image in range(20):
        found, truth = real[0][image], real[1][image]
        theirs.update(
            [{name: torch.from_numpy(answers[name][image, found]) for name in ("boxes", "scores", "labels")}],
            [{**{name: torch.from_numpy(targets[name][image, truth]) for name in ("boxes", "labels", "area")},
              "iscrowd": torch.from_numpy(targets["crowd"][image, truth].astype(np.int64))}],
        )  # fmt: skip
    expected = theirs.compute()
    for name in COCO:
        key = name if name.startswith("map_") or name == "map" else name.replace("map", "map_")
        assert reduced(name, answers, targets) == pytest.approx(float(expected[key]), abs=1e-6)
    classwise = by_class(EVERY["map"], EVERY["map"].per_sample(answers, targets))
    np.testing.assert_allclose(classwise, expected["map_per_class"].numpy(), atol=1e-6)


# Truth; detections (box, score, label); the values of the six COCO metrics and the two of VOC.
GOLDEN = {
    "all found, none too many": ([[(A, 0), (B, 1)]], [[(B, 0.9, 1), (A, 0.8, 0)]], (1, 1, 1, 1, np.nan, 1, 1, 1)),
    "IoU 0.8 is enough up to 0.8": ([[(A, 0)]], [[((0, 0, 20, 16), 0.9, 0)]], (0.7, 1, 1, 0.7, *[np.nan] * 2, 1, 1)),
    "one of two": ([[(A, 0), (B, 0)]], [[(B, 0.9, 0)]], (*[51 / 101] * 3, 0, np.nan, 1, 0.5, 6 / 11)),
    "an alarm ahead": ([[(B, 0)]], [[(A, 0.9, 0), (B, 0.8, 0)]], (*[0.5] * 3, np.nan, np.nan, 1, 0.5, 0.5)),
    "an alarm behind": ([[(B, 0)]], [[(B, 0.9, 0), (A, 0.8, 0)]], (*[1] * 3, np.nan, np.nan, 1, 1, 1)),
    "the wrong class": ([[(B, 0)]], [[(B, 0.9, 1)]], (*[0] * 3, np.nan, np.nan, 0, 0, 0)),
    "a class without truth": ([[(B, 0)]], [[(B, 0.9, 0), (A, 0.9, 2)]], (*[1] * 3, np.nan, np.nan, 1, 1, 1)),
    "alarms in an image without truth": (
        [[(B, 0)], []], [[(B, 0.8, 0)], [(B, 0.9, 0), (B, 0.7, 0)]], (*[0.5] * 3, np.nan, np.nan, 0.5, 0.5, 0.5),
    ),
    "a crowd": ([[(B, 0, True), (A, 0)]], [[(B, 0.9, 0), (A, 0.8, 0)]], (*[1] * 4, np.nan, np.nan, 1, 1)),
    "an area that the file tells": (
        [[(B, 0, False, 5000)]], [[(B, 0.9, 0)]], (*[1] * 3, np.nan, 1, np.nan, 1, 1),
    ),
    "a little larger than medium": (
        [[((0, 0, 96.5, 96.5), 0)]], [[((0, 0, 96.5, 96.5), 0.9, 0)]], (*[1] * 3, np.nan, np.nan, 1, 1, 1),
    ),
    "a little larger than small": (
        [[((0, 0, 32.5, 32.5), 0)]], [[((0, 0, 32.5, 32.5), 0.9, 0)]], (*[1] * 3, np.nan, 1, np.nan, 1, 1),
    ),
    "nothing detected": ([[(B, 0)]], [[]], (*[0] * 3, np.nan, np.nan, 0, 0, 0)),
    "nothing to detect": ([[]], [[(B, 0.9, 0)]], [np.nan] * 8),
    "a box of no area": ([[((5, 5, 5, 5), 0)]], [[((5, 5, 5, 5), 0.9, 0)]], (*[0] * 4, *[np.nan] * 2, 0, 0)),
}  # fmt: skip


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_values(name):
    truths, found, expected = GOLDEN[name]
    answers, targets = listed(truths, found)
    np.testing.assert_allclose([reduced(key, answers, targets) for key in (*COCO, *VOC)], expected, atol=1e-12)
    stats = coco_eval(answers, targets, 3).stats[:6]
    np.testing.assert_allclose(np.where(stats < 0, np.nan, stats), expected[:6], atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.sampled_from(sorted(EVERY)))
def test_resampled_is_reduce_of_repeated_rows(seed, name):
    statistics = EVERY[name].per_sample(*scene(seed, images=6))
    counts = np.random.default_rng(seed).multinomial(6, [1 / 6] * 6, size=5)
    expected = [EVERY[name].reduce(rows(statistics, np.repeat(np.arange(6), count))) for count in counts]
    np.testing.assert_allclose(EVERY[name].resampled(statistics, counts), expected, atol=1e-12)
    np.testing.assert_equal(EVERY[name].reduce(statistics), EVERY[name].resampled(statistics, once(6))[0])


def test_batches_give_the_statistics_of_all_images_at_once():
    answers, targets = scene(9, images=9)
    for metric in EVERY.values():
        whole = metric.per_sample(answers, targets)
        parts = [metric.per_sample(rows(answers, part), rows(targets, part)) for part in (slice(4), slice(4, 9))]
        for key, array in whole.items():
            np.testing.assert_array_equal(np.concatenate([part[key] for part in parts]), array)
            assert array.dtype == parts[0][key].dtype


def unseen_blank(metric, answers, targets, seen):
    """Statistics as an evaluation that stopped has them: 0 where unseen, but what targets tell."""
    statistics = metric.per_sample(answers, targets)
    blank = {key: np.where(seen.reshape(-1, *[1] * (array.ndim - 1)), array, 0) for key, array in statistics.items()}
    return {**blank, **metric.known(targets)}


def perfect(targets, places):
    """Answers that find all truth and nothing else, above all scores."""
    answers, _ = listed([[]] * len(targets["labels"]), [[]] * len(targets["labels"]), places=places)
    truths = targets["labels"].shape[1]
    real = targets["labels"] >= 0
    answers["boxes"][:, :truths] = targets["boxes"]
    answers["labels"][:, :truths] = np.where(real, targets["labels"], -1)
    answers["scores"][:, :truths] = np.where(real, 2.0, -1.0)
    return answers


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.sampled_from(sorted(EVERY)))
def test_bounds_hold_whatever_unseen_images_turn_out_to_be(seed, name):
    metric = EVERY[name]
    (answers, targets), other = scene(seed, images=6), scene(seed + 1, images=6)[0]
    seen = np.random.default_rng(seed).random(6) < 0.5
    statistics = unseen_blank(metric, answers, targets, seen)
    low, high = metric.worst_bound(statistics, seen), metric.upper_bound(statistics, seen)
    for unseen in (answers, other, perfect(targets, 12)):
        mixed = {key: np.where(seen.reshape(-1, *[1] * (answers[key].ndim - 1)), answers[key], unseen[key])
                 for key in answers}  # fmt: skip
        value = reduced(name, mixed, targets)
        assert np.isnan(value) or low <= value <= high


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.sampled_from(sorted(EVERY)))
def test_the_upper_bound_is_reached_by_a_perfect_rest(seed, name):
    """Without boxes of no area, which nothing can find, and without crowds, whose detections get in the way."""
    metric = EVERY[name]
    answers, targets = scene(seed, images=6, crowd=0.0, step=0.01)
    empty = (targets["boxes"][..., 2:] <= targets["boxes"][..., :2]).any(axis=2) & (targets["labels"] >= 0)
    targets["labels"][empty] = -1
    targets["area"] = np.where(
        targets["labels"] >= 0, (targets["boxes"][..., 2:] - targets["boxes"][..., :2]).prod(axis=2), 0
    )
    seen = np.arange(6) < seed % 6
    best = perfect(targets, 12)
    mixed = {key: np.where(seen.reshape(-1, *[1] * (answers[key].ndim - 1)), answers[key], best[key])
             for key in answers}  # fmt: skip
    bound = metric.upper_bound(unseen_blank(metric, answers, targets, seen), seen)
    np.testing.assert_allclose(bound, reduced(name, mixed, targets), atol=1e-11)


def test_the_worst_bound_is_reached_by_alarms_of_one_class_ahead_of_all():
    metric = metrics(Suppression(), 1)["map"]
    answers, targets = listed([[(B, 0)], [(B, 0)]], [[(B, 0.9, 0)], [(A, 1.0, 0)] * 4], places=4)
    seen = np.array([True, False])
    assert metric.worst_bound(unseen_blank(metric, answers, targets, seen), seen) == pytest.approx(
        metric.reduce(metric.per_sample(answers, targets)), abs=1e-11
    )


def test_with_all_seen_the_bounds_are_the_value():
    for metric in EVERY.values():
        statistics, seen = metric.per_sample(*scene(4)), np.ones(5, bool)
        assert metric.upper_bound(statistics, seen) == pytest.approx(metric.reduce(statistics), abs=1e-15)
        assert metric.worst_bound(statistics, seen) == pytest.approx(metric.reduce(statistics), abs=1e-15)


def test_difficulty_counts_missed_truth_and_alarms_by_their_scores():
    answers, targets = listed(
        [[(A, 0), (B, 1)], [(A, 0)], [], [(A, 0, True)]],
        [[(A, 0.9, 0), (A, 0.5, 1)], [(A, 0.9, 0)], [(A, 0.25, 2)], [(A, 0.9, 0)]],
    )
    for name in ("map", "map50", "voc_map"):
        difficulty = EVERY[name].difficulty(EVERY[name].per_sample(answers, targets), answers, targets)
        assert difficulty.dtype == np.float32
        assert difficulty.tolist() == [1.5, 0, 0.25, 0]
    half = listed([[(A, 0)]], [[((0, 0, 20, 15), 0.5, 0)]])
    found = EVERY["map"].difficulty(EVERY["map"].per_sample(*half), *half)
    assert found[0] == pytest.approx(0.4 + 0.4 * 0.5)  # four of ten thresholds are above 0.75


def test_margins_are_the_smallest_change_of_a_score_that_shows():
    answers, _ = listed(
        [[]] * 4, [[(A, 0.9, 0), (B, 0.5, 0)], [(A, 0.55, 0), (B, 0.5, 1)], [(A, 0.0625, 0)], []], places=3
    )
    outputs = {"any": np.zeros((4, 2, 4)), "name": np.array([[[0.9, 0.5]], [[0.55, 0.5]], [[0.0625, 0]], [[0.03, 0]]])}
    np.testing.assert_allclose(EVERY["map"].task.margins(answers, outputs), [0.4, 0.45, 0.0125, 0.02], atol=1e-6)
    outputs["name"][3] = np.nan
    assert np.isinf(EVERY["map"].task.margins(answers, outputs)[3])


def test_answers_are_what_suppression_leaves_and_the_rest_is_known_before():
    boxes = np.array([[[0, 0, 20, 20], [1, 0, 20, 20], [50, 50, 90, 90]]], np.float32)
    scores = np.array([[[0.9, 0.01, 0], [0.8, 0, 0], [0.02, 0.6, 0]]], np.float32)
    _, targets = listed([[(A, 0), ((50, 50, 90, 90), 1), (B, 1, True)]], [[]])
    metric = EVERY["map50"]
    answers = metric.task.answers({"a": boxes, "b": scores}, targets)
    assert answers["labels"][0, :3].tolist() == [0, 1, -1]
    assert metric.reduce(metric.per_sample(answers, targets)) == pytest.approx(1.0)
    assert metric.known(targets)["positives"].tolist() == [[1, 1, 0]]
    statistics = metric.per_sample(answers, targets)
    assert {key: (array.dtype.name, array.shape) for key, array in statistics.items()} == {
        "score": ("float32", (1, 100)), "label": ("int32", (1, 100)), "matched": ("uint16", (1, 100)),
        "ignored": ("uint16", (1, 100)), "positives": ("int32", (1, 3)),
    }  # fmt: skip
    assert metric.unsettled({"a": boxes, "b": scores}, 0.1) is None
    assert metric.class_images(statistics).tolist() == [1, 1, 0]


def test_classes_beyond_the_metrics_are_named():
    answers, targets = listed([[(A, 3)]], [[(A, 0.9, 0)]])
    with pytest.raises(SoupError, match=r"the split: class 3, expected 0 to 2\."):
        EVERY["map"].per_sample(answers, targets)
    answers, targets = listed([[(A, 0)]], [[(A, 0.9, 7)]])
    with pytest.raises(SoupError, match=r"the model's outputs: class 7, expected 0 to 2\."):
        EVERY["voc_map"].per_sample(answers, targets)


def test_no_images_have_no_value():
    for metric in EVERY.values():
        statistics = rows(metric.per_sample(*scene(1)), slice(0))
        assert np.isnan(metric.reduce(statistics))
        assert np.isnan(metric.resampled(statistics, np.zeros((2, 0), np.int64))).all()
        assert np.isnan(by_class(metric, statistics)).all()
