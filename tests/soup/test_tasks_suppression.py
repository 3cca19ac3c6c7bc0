"""Suppression against torchvision, ensemble_boxes, the papers' formulas written as loops, and its invariants."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import batched_nms, nms

from soup.tasks.boxes import iou
from soup.tasks.suppression import Suppression, suppress

METHODS = ["nms", "soft_linear", "soft_gaussian", "weighted_fusion", "none"]
SEEDS = st.integers(0, 2**32 - 1)
ALL = {"score": 0.0, "max_detections": 10**6, "candidates": 10**6}


def scene(seed, anchors=60, classes=3, *, grid=True, ties=False, side=64):
    """(boxes [A, 4], scores [A, C]): about six boxes for each thing, scores tied or distinct.

    Corners on a grid make boxes that are equal, or without area, and overlaps that equal each other or the threshold.
    """
    rng = np.random.default_rng(seed)
    things = rng.integers(0, 1 + anchors // 6, anchors)
    corners = rng.uniform(0, side, (anchors, 2))[things] + rng.uniform(0, 6, (anchors, 2))
    sides = rng.uniform(8, side / 2, (anchors, 2))[things] + rng.uniform(-8, 8, (anchors, 2))
    boxes = np.hstack([corners, corners + sides]).astype(np.float32)
    if grid:
        boxes = np.round(boxes / 4) * 4
        boxes[anchors // 2 :: 5] = boxes[: len(boxes[anchors // 2 :: 5])]
    count = anchors * classes
    scores = ((rng.permutation(count) + rng.uniform(0, 0.5, count)) / max(1, count)).reshape(anchors, classes)
    return boxes, (np.round(scores, 1) if ties else scores).astype(np.float32)


def pairs(boxes, scores, threshold):
    """(boxes, scores, labels) of all pairs of an anchor and a class above the threshold, in that order."""
    anchors, labels = np.nonzero(scores > np.float32(threshold))
    return boxes[anchors], scores[anchors, labels], labels


def listed(found):
    return [(*box, score, label) for box, score, label in zip(found.boxes, found.scores, found.labels, strict=True)]


def assert_same(found, boxes, scores, labels, **tolerance):
    np.testing.assert_array_equal(found.labels, labels)
    np.testing.assert_allclose(found.scores, scores, **(tolerance or {"rtol": 0}))
    np.testing.assert_allclose(found.boxes, boxes, **(tolerance or {"rtol": 0}))
    assert (found.boxes.dtype, found.scores.dtype, found.labels.dtype) == (np.float32, np.float32, np.int32)


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, anchors=st.integers(0, 90), threshold=st.sampled_from([0.3, 0.5, 0.6, 0.75]), ties=st.booleans())
def test_nms_is_torchvisions(seed, anchors, threshold, ties):
    """In float64, where an overlap that equals the threshold is the same number in both."""
    boxes, scores = scene(seed, anchors, ties=ties)
    rules = Suppression(**{**ALL, "iou": threshold, "score": 0.25})
    flat, values, labels = pairs(boxes, scores, 0.25)
    arguments = torch.from_numpy(flat).double(), torch.from_numpy(values).double()
    kept = batched_nms(*arguments, torch.from_numpy(labels), threshold).numpy()
    assert_same(suppress(boxes, scores, rules), flat[kept], values[kept], labels[kept])
    kept = nms(*arguments, threshold).numpy()
    agnostic = suppress(boxes, scores, replace(rules, class_agnostic=True))
    assert_same(agnostic, flat[kept], values[kept], labels[kept])


def test_nms_is_torchvisions_beyond_one_block_of_candidates_and_at_the_limit_of_detections():
    boxes, scores = scene(3, anchors=900, classes=1, side=300)
    kept = nms(torch.from_numpy(boxes).double(), torch.from_numpy(scores[:, 0]).double(), 0.5).numpy()
    assert len(kept) > 150
    every = suppress(boxes, scores, Suppression(score=0.0, max_detections=900))
    np.testing.assert_array_equal(every.scores, scores[kept[scores[kept, 0] > 0], 0])
    first = suppress(boxes, scores, Suppression(score=0.0, max_detections=150))
    assert_same(first, every.boxes[:150], every.scores[:150], every.labels[:150])


def soft_nms_by_the_paper(boxes, scores, rules):
    """Figure 2 of Bodla et al. for one class: [(row, score)] in the order of picking."""
    left = dict(enumerate(scores.astype(float)))
    picked = []
    while left:
        best = max(left, key=lambda row: (left[row], -row))
        score = left.pop(best)
        picked.append((best, score))
        for row in left:
            overlap = iou(boxes[[best]], boxes[[row]])[0, 0]
            if rules.method == "soft_gaussian":
                left[row] *= math.exp(-(overlap**2) / rules.sigma)
            elif overlap > rules.iou:
                left[row] *= 1 - overlap
    return [(row, score) for row, score in picked if score > rules.score]


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, method=st.sampled_from(["soft_linear", "soft_gaussian"]), agnostic=st.booleans(), ties=st.booleans())
def test_soft_nms_is_the_papers_loop(seed, method, agnostic, ties):
    boxes, scores = scene(seed, 25, 2, ties=ties)
    rules = Suppression(**ALL | {"score": 0.2}, method=method, iou=0.4, sigma=0.3, class_agnostic=agnostic)
    flat, values, labels = pairs(boxes, scores, rules.score)
    order = np.argsort(-values, kind="stable")
    flat, values, labels = flat[order], values[order], labels[order]
    expected = []
    for members in [np.arange(len(labels))] if agnostic else [np.flatnonzero(labels == label) for label in (0, 1)]:
        expected += [
            (members[row], score) for row, score in soft_nms_by_the_paper(flat[members], values[members], rules)
        ]
    expected.sort(key=lambda pair: (-pair[1], pair[0]))
    rows = np.array([row for row, _ in expected], int)
    assert_same(suppress(boxes, scores, rules), flat[rows], [s for _, s in expected], labels[rows], rtol=1e-6)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("method", "number"), [("soft_linear", 1), ("soft_gaussian", 2)])
def test_soft_nms_agrees_with_ensemble_boxes(seed, method, number):
    """Its inner function, since the outer one returns the scores of before; both drop at the end what is too low."""
    ensemble = pytest.importorskip("ensemble_boxes.ensemble_boxes_nms")
    boxes, scores = scene(seed, 60, 1, grid=False)
    theirs = scores[:, 0].astype(float)  # is sorted and lowered in place
    kept = ensemble.cpu_soft_nms_float(boxes.astype(float) / 128, theirs, Nt=0.3, sigma=0.5, thresh=0.1, method=number)
    rules = Suppression(**ALL | {"score": 0.1}, method=method, iou=0.3, sigma=0.5)
    assert 5 < len(kept) < 55
    assert_same(suppress(boxes, scores, rules), boxes[kept], theirs[theirs > 0.1], np.zeros(len(kept)), rtol=1e-6)


def weighted_fusion_by_the_paper(boxes, scores, threshold):
    """Section 3 of Solovyev et al. for one class and one model, boxes best first: [(box, score)]."""
    clusters, means = [], []
    for box, score in zip(boxes.astype(float), scores.astype(float), strict=True):
        overlaps = [iou(box[None], mean[None])[0, 0] for mean in means]
        at = int(np.argmax(overlaps)) if overlaps and max(overlaps) > threshold else len(means)
        if at == len(means):
            clusters.append([])
            means.append(None)
        clusters[at].append((box, score))
        means[at] = sum(s * b for b, s in clusters[at]) / sum(s for _, s in clusters[at])
    return [(mean, np.mean([s for _, s in cluster])) for mean, cluster in zip(means, clusters, strict=True)]


@pytest.mark.parametrize("seed", range(20))
def test_weighted_fusion_is_the_papers_loop(seed):
    boxes, scores = scene(seed, 40, 2, grid=False)
    rules = Suppression(**ALL, method="weighted_fusion", iou=0.45)
    flat, values, labels = pairs(boxes, scores, 0.0)
    expected = []
    for label in (0, 1):
        own = np.flatnonzero(labels == label)
        own = own[np.argsort(-values[own], kind="stable")]
        fused = weighted_fusion_by_the_paper(flat[own], values[own], rules.iou)
        expected += [(score, box, label) for box, score in fused]
    expected.sort(key=lambda item: -item[0])
    assert len(expected) < len(values)
    new_scores, new_boxes, new_labels = zip(*expected, strict=True)
    assert_same(suppress(boxes, scores, rules), new_boxes, new_scores, new_labels, rtol=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_weighted_fusion_agrees_with_ensemble_boxes(seed):
    """Which takes coordinates from 0 to 1 and keeps fused boxes in float32."""
    ensemble = pytest.importorskip("ensemble_boxes")
    boxes, scores = scene(seed, 80, 3, grid=False)
    flat, values, labels = pairs(boxes, scores, 0.1)
    theirs = ensemble.weighted_boxes_fusion([flat / 128], [values], [labels], iou_thr=0.5, skip_box_thr=0.1)
    found = suppress(boxes, scores, Suppression(**ALL | {"score": 0.1}, method="weighted_fusion", iou=0.5))
    assert len(found) < len(values) - 20
    assert_same(found, theirs[0] * 128, theirs[1], theirs[2], rtol=1e-4, atol=1e-4)


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, agnostic=st.booleans(), method=st.sampled_from(["nms", "soft_linear"]))
def test_box_voting_is_the_formula(seed, agnostic, method):
    """Σ score × box / Σ score over the class's candidates above the overlap, by their own scores."""
    boxes, scores = scene(seed, 40, 2)
    rules = Suppression(**ALL | {"score": 0.3}, method=method, class_agnostic=agnostic)
    flat, values, labels = pairs(boxes, scores, 0.3)
    plain, voted = suppress(boxes, scores, rules), suppress(boxes, scores, replace(rules, voting_iou=0.6))
    expected = []
    for box, label in zip(plain.boxes, plain.labels, strict=True):
        near = (iou(box[None], flat)[0] > 0.6) & (agnostic | (labels == label))
        weights = values[near].astype(float)
        expected.append((weights[:, None] * flat[near]).sum(axis=0) / weights.sum() if near.any() else box)
    assert_same(voted, expected, plain.scores, plain.labels, rtol=1e-6, atol=1e-5)


def test_voting_moves_a_box_toward_its_neighbours():
    boxes = np.float32([[0, 0, 10, 10], [2, 0, 12, 10], [50, 50, 60, 60], [0, 0, 0, 9]])
    found = suppress(boxes, np.float32([[0.6], [0.3], [0.2], [0.1]]), Suppression(voting_iou=0.5))
    np.testing.assert_allclose(found.boxes, [[2 / 3, 0, 32 / 3, 10], boxes[2], boxes[3]], rtol=1e-6)


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, agnostic=st.booleans(), iou_limit=st.sampled_from([0.3, 0.5]))
def test_nms_of_what_nms_kept_is_the_same(seed, agnostic, iou_limit):
    boxes, scores = scene(seed, 50, 3)
    rules = Suppression(**ALL, iou=iou_limit, class_agnostic=agnostic)
    once = suppress(boxes, scores, rules)
    one_hot = np.where(np.arange(3) == once.labels[:, None], once.scores[:, None], 0).astype(np.float32)
    assert listed(suppress(once.boxes, one_hot, rules)) == listed(once)


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, method=st.sampled_from(METHODS), agnostic=st.booleans(), voting=st.sampled_from([None, 0.6]))
def test_the_order_of_anchors_does_not_matter_where_scores_differ(seed, method, agnostic, voting):
    boxes, scores = scene(seed, 40, 3)
    rules = Suppression(method=method, class_agnostic=agnostic, voting_iou=voting, candidates=70, max_detections=20)
    order = np.random.default_rng(seed).permutation(len(boxes))
    before, after = suppress(boxes, scores, rules), suppress(boxes[order], scores[order], rules)
    assert listed(before) == listed(after)
    assert len(before) <= 20
    assert (np.diff(before.scores) <= 0).all()


@pytest.mark.parametrize("method", METHODS)
def test_of_equal_scores_the_lower_anchor_and_then_the_lower_class_comes_first(method):
    boxes = np.float32([[40, 0, 50, 10], [20, 0, 30, 10], [0, 0, 10, 10]])
    scores = np.float32([[0.1, 0.5], [0.5, 0.5], [0.5, 0.9]])
    found = suppress(boxes, scores, Suppression(method=method, score=0.2))
    assert listed(found) == [
        (*boxes[2], np.float32(0.9), 1), (*boxes[0], 0.5, 1), (*boxes[1], 0.5, 0), (*boxes[1], 0.5, 1),
        (*boxes[2], 0.5, 0),
    ]  # fmt: skip
    few = suppress(boxes, scores, Suppression(method=method, score=0.2, candidates=3))
    assert listed(few) == listed(found)[:3]
    assert listed(suppress(boxes, scores, Suppression(method=method, score=0.2, max_detections=2))) == listed(found)[:2]


def test_a_score_and_an_overlap_that_equal_the_limit_are_not_above_it():
    boxes = np.float32([[0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 6]])
    scores = np.float32([[0.9], [0.5], [0.25]])
    assert len(suppress(boxes, scores, Suppression(score=0.25))) == 2
    assert len(suppress(boxes, scores, Suppression(score=0.24))) == 2  # 5/6 with the second, and 0.6 with the first
    assert len(suppress(boxes[[0, 2]], scores[:2], Suppression(iou=0.6))) == 2


@pytest.mark.parametrize("method", METHODS)
def test_what_is_not_finite_is_never_a_detection_and_takes_no_place(method):
    boxes = np.float32([[0, 0, 9, 9], [20, 0, 30, np.nan], [20, 0, 29, 9], [np.inf, 0, 50, 9], [60, 0, 69, 9]])
    scores = np.float32([[0.5, np.nan], [0.99, 0.98], [np.inf, 0.4], [0.97, 0.97], [-np.inf, 0.3]])
    found = suppress(boxes, scores, Suppression(method=method, candidates=3))
    expected = [(*boxes[0], 0.5, 0), (*boxes[2], np.float32(0.4), 1), (*boxes[4], np.float32(0.3), 1)]
    assert listed(found) == expected


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("voting", [None, 0.5])
@pytest.mark.parametrize(
    ("anchors", "classes", "value", "most"), [(0, 3, 0, 5), (4, 0, 0, 5), (4, 3, 0.01, 5), (4, 3, 0.9, 0)]
)
def test_nothing_gives_nothing(method, voting, anchors, classes, value, most):
    rules = Suppression(method=method, voting_iou=voting, max_detections=most)
    found = suppress(np.zeros((anchors, 4), np.float32), np.full((anchors, classes), value, np.float32), rules)
    assert (found.boxes.shape, found.scores.shape, found.labels.shape) == ((0, 4), (0,), (0,))
