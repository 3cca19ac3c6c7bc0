"""Fusion of several detectors' answers against ensemble_boxes, a plain loop of its rules, and its invariants."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soup import SoupError
from soup.tasks.boxes import Detections, iou, padded, unpadded
from soup.tasks.fusion import Fusion, fuse, fuse_answers

SEEDS = st.integers(0, 2**32 - 1)
MODES = ["union", "intersection", "weighted"]
ALL = {"iou": 0.5, "min_votes": None, "score": 0.0, "weights": None, "max_detections": 10**6}


def found_by(seed, parts=3, things=12, classes=3, *, side=100):
    """Detections of several models: the same things, each seen twice by some and not by others, all scores distinct."""
    rng = np.random.default_rng(seed)
    corners, sides = rng.uniform(20, side, (things, 2)), rng.uniform(10, side / 3, (things, 2))
    kinds = rng.integers(0, classes, things)
    models = []
    for _ in range(parts):
        seen = np.flatnonzero(rng.random(2 * things) < 0.5) % things
        moved = corners[seen] + rng.normal(0, 3, (len(seen), 2))
        boxes = np.hstack([moved, moved + sides[seen] * rng.uniform(0.8, 1.2, (len(seen), 2))]).astype(np.float32)
        scores = np.sort(rng.uniform(0.05, 1, len(seen)).astype(np.float32))[::-1]
        models.append(Detections(boxes, scores, kinds[seen].astype(np.int32)))
    return models


def detections(*rows):
    """Of (x1, y1, x2, y2, score, label)."""
    table = np.array(rows, np.float32).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4], table[:, 5].astype(np.int32))


def listed(found):
    return [(*box, score, label) for box, score, label in zip(found.boxes, found.scores, found.labels, strict=True)]


def by_the_rules(parts, votes, weights, limit):
    """The clusters of union and intersection as the docstring tells them, box after box."""
    left = [
        (score, index, row, label, box)
        for index, part in enumerate(parts)
        for row, (*box, score, label) in enumerate(listed(part))
    ]
    fused = []
    while left:
        founder = min(left, key=lambda one: (-one[0], one[1], one[2]))
        members = [founder]
        for index in set(range(len(parts))) - {founder[1]}:
            near = [one for one in left if one[1] == index and one[3] == founder[3]]
            near = [(iou(np.array([founder[4]]), np.array([one[4]]))[0, 0], one) for one in near]
            near = [pair for pair in near if pair[0] > limit]
            if near:
                members.append(max(near, key=lambda pair: (pair[0], pair[1][0]))[1])
        left = [one for one in left if not any(one is member for member in members)]
        shares = np.array([float(one[0]) * weights[one[1]] for one in members])
        box = (shares[:, None] * np.array([one[4] for one in members], float)).sum(axis=0) / shares.sum()
        if len(members) >= votes:
            fused.append((*box, founder[0], founder[3]))
    return fused


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, parts=st.integers(1, 4), limit=st.sampled_from([0.4, 0.6]), votes=st.integers(1, 4))
def test_union_and_votes_are_as_the_rules_say(seed, parts, limit, votes):
    models, weights, votes = (
        found_by(seed, parts),
        np.random.default_rng(seed).uniform(0.5, 2, parts),
        min(votes, parts),
    )
    found = fuse(models, Fusion(**{**ALL, "iou": limit, "min_votes": votes, "weights": weights.tolist()}, mode="union"))
    expected = by_the_rules(models, votes, weights, limit)
    assert len(found) == len(expected)
    np.testing.assert_allclose(np.array(listed(found)), np.array(expected), rtol=1e-5)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 0.7]])
def test_weighted_fusion_agrees_with_ensemble_boxes(seed, weights):
    """Which takes coordinates from 0 to 1, keeps fused boxes in float32, and drops low scores before fusing."""
    ensemble = pytest.importorskip("ensemble_boxes")
    models = found_by(seed, classes=2)
    columns = [[getattr(one, name) for one in models] for name in ("boxes", "scores", "labels")]
    columns[0] = [np.clip(boxes, 0, 150) / 150 for boxes in columns[0]]
    theirs = ensemble.weighted_boxes_fusion(*columns, weights=weights, iou_thr=0.55)
    found = fuse(models, Fusion(**{**ALL, "iou": 0.55, "weights": weights}, mode="weighted"))
    assert len(found) < sum(len(one) for one in models) - 5
    np.testing.assert_array_equal(found.labels, theirs[2])
    np.testing.assert_allclose(found.scores, theirs[1], rtol=1e-6)
    np.testing.assert_allclose(found.boxes, theirs[0] * 150, rtol=1e-4, atol=1e-4)


def test_the_papers_rescale_lowers_what_few_models_saw():
    """Equation 5: C · min(T, N) / N."""
    models = [detections((0, 0, 10, 10, 0.9, 0), (50, 0, 60, 10, 0.6, 0)), detections((0, 0, 12, 10, 0.5, 0))]
    found = fuse(models, Fusion(**ALL, mode="weighted"))
    np.testing.assert_allclose(found.scores, [(0.9 + 0.5) / 2, 0.6 / 2], rtol=1e-6)
    np.testing.assert_allclose(found.boxes[0], [0, 0, (0.9 * 10 + 0.5 * 12) / 1.4, 10], rtol=1e-6)


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, mode=st.sampled_from(["union", "intersection"]), weight=st.sampled_from([None, [3.0]]))
def test_one_part_alone_comes_out_as_it_went_in(seed, mode, weight):
    [alone] = found_by(seed, parts=1)
    assert listed(fuse([alone], Fusion(**{**ALL, "weights": weight}, mode=mode))) == listed(alone)


@pytest.mark.parametrize("mode", MODES)
def test_one_part_whose_boxes_lie_apart_comes_out_of_all_modes_as_it_went_in(mode):
    alone = detections((0, 0, 10, 10, 0.9, 0), (1, 0, 11, 10, 0.8, 1), (8, 0, 19, 10, 0.3, 0), (5, 5, 5, 9, 0.2, 1))
    assert listed(fuse([alone], Fusion(**ALL, mode=mode))) == listed(alone)


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, parts=st.integers(1, 4))
def test_more_votes_keep_less_of_the_same(seed, parts):
    """Intersection is a subset of union, and of itself with fewer votes."""
    models = found_by(seed, parts)
    kept = [set(listed(fuse(models, Fusion(**ALL | {"min_votes": v}, mode="union")))) for v in range(1, parts + 1)]
    assert all(more <= fewer for fewer, more in itertools.pairwise(kept))
    assert set(listed(fuse(models, Fusion(**ALL, mode="intersection")))) == kept[-1]
    assert set(listed(fuse(models, Fusion(**ALL, mode="union")))) == kept[0]


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, mode=st.sampled_from(MODES))
def test_the_order_of_parts_does_not_matter_where_scores_differ(seed, mode):
    models, weights = found_by(seed), [1.0, 0.8, 1.7]
    before = fuse(models, Fusion(**{**ALL, "weights": weights}, mode=mode))
    after = fuse(models[::-1], Fusion(**{**ALL, "weights": weights[::-1]}, mode=mode))
    assert listed(before) == listed(after)
    assert (np.diff(before.scores) <= 0).all()
    assert (before.boxes.dtype, before.scores.dtype, before.labels.dtype) == (np.float32, np.float32, np.int32)


@pytest.mark.parametrize("mode", MODES)
def test_only_the_ratio_of_weights_counts(mode):
    models = found_by(5)
    one = fuse(models, Fusion(**{**ALL, "weights": [1.0, 2.0, 4.0]}, mode=mode))
    other = fuse(models, Fusion(**{**ALL, "weights": [2.0, 4.0, 8.0]}, mode=mode))
    assert listed(one) == listed(other)


def test_a_part_votes_once_and_its_second_box_stays_on_its_own():
    twice = detections((0, 0, 10, 10, 0.9, 0), (0, 0, 10, 9, 0.8, 0))
    found = fuse([twice, detections((0, 0, 10, 10, 0.7, 0))], Fusion(**ALL, mode="intersection"))
    assert listed(found) == [(0, 0, 10, 10, np.float32(0.9), 0)]
    assert len(fuse([twice, detections()], Fusion(**ALL, mode="intersection"))) == 0
    assert len(fuse([twice, detections()], Fusion(**ALL, mode="union"))) == 2
    assert len(fuse([twice, detections()], Fusion(**ALL | {"min_votes": 2}, mode="weighted"))) == 0


def test_boxes_of_different_classes_never_meet():
    models = [detections((0, 0, 10, 10, 0.9, 0)), detections((0, 0, 10, 10, 0.8, 1))]
    assert len(fuse(models, Fusion(**ALL, mode="union"))) == 2
    assert len(fuse(models, Fusion(**ALL, mode="intersection"))) == 0
    assert len(fuse(models, Fusion(**ALL, mode="weighted"))) == 2


def test_ties_go_to_the_earlier_part_and_the_better_box():
    first = detections((0, 0, 10, 10, 0.5, 0))
    second = detections((20, 0, 30, 10, 0.5, 0), (0, 0, 10, 8, 0.4, 0), (0, 0, 8, 10, 0.3, 0))
    found = fuse([first, second], Fusion(**ALL | {"max_detections": 2}, mode="union"))
    mean = (0.5 * 10 + 0.4 * 8) / 0.9
    np.testing.assert_allclose(found.boxes, [[0, 0, 10, mean], [20, 0, 30, 10]], rtol=1e-6)
    swapped = fuse([second, first], Fusion(**ALL, mode="union"))
    np.testing.assert_allclose(swapped.boxes, [[20, 0, 30, 10], [0, 0, 10, mean], [0, 0, 8, 10]], rtol=1e-6)


@pytest.mark.parametrize(("mode", "expected"), [("union", 0.5), ("intersection", 0.5), ("weighted", 0.375)])
def test_the_score_threshold_counts_after_fusing_and_low_boxes_vote(mode, expected):
    models = [detections((0, 0, 10, 10, 0.5, 0)), detections((0, 0, 10, 10, 0.25, 0))]
    assert fuse(models, Fusion(**ALL | {"score": expected - 0.01}, mode=mode)).scores.tolist() == [expected]
    assert len(fuse(models, Fusion(**ALL | {"score": expected}, mode=mode))) == 0


@pytest.mark.parametrize("mode", MODES)
def test_boxes_of_score_zero_have_a_mean_too(mode):
    models = [detections((0, 0, 10, 10, 0, 0)), detections((0, 0, 8, 10, 0, 0))]
    assert listed(fuse(models, Fusion(**ALL | {"score": -1.0}, mode=mode))) == [(0, 0, 9, 10, 0, 0)]


@pytest.mark.parametrize("mode", MODES)
def test_nothing_gives_nothing(mode):
    assert len(fuse([detections(), detections()], Fusion(**ALL, mode=mode))) == 0
    assert fuse([detections()], Fusion(**ALL, mode=mode)).boxes.shape == (0, 4)


@pytest.mark.parametrize("mode", MODES)
def test_whole_splits_are_fused_image_by_image(mode):
    images = [found_by(seed) for seed in range(4)]
    splits = [padded([image[part] for image in images], 40) for part in range(3)]
    arguments = {**ALL, "weights": [1.0, 2.0, 3.0], "max_detections": 9, "mode": mode}
    answers = fuse_answers(splits, Fusion(**arguments))
    assert answers["boxes"].shape == (4, 9, 4)
    for row, image in enumerate(images):
        assert listed(unpadded(answers, row)) == listed(fuse(image, Fusion(**arguments)))


@pytest.mark.parametrize(
    ("parts", "changes", "told"),
    [
        (0, {}, "nothing to fuse"),
        (2, {"weights": [1.0]}, r"weights are \[1.0\], expected 2 positive numbers"),
        (2, {"weights": [1.0, 0.0]}, "expected 2 positive numbers"),
        (2, {"weights": [1.0, float("nan")]}, "expected 2 positive numbers"),
        (2, {"min_votes": 3}, "min_votes is 3, expected 1 to 2"),
        (2, {"min_votes": 0}, "min_votes is 0, expected 1 to 2"),
    ],
)
def test_what_cannot_be_fused_is_told(parts, changes, told):
    with pytest.raises(SoupError, match=told):
        fuse([detections()] * parts, Fusion(**{**ALL, **changes}, mode="union"))
    with pytest.raises(SoupError, match=told):
        fuse_answers(
            [padded([detections()], 3)] * parts, Fusion(**{**ALL, **changes, "max_detections": 3}, mode="union")
        )


def test_splits_of_different_length_are_told():
    splits = [padded([detections()] * count, 3) for count in (2, 3)]
    with pytest.raises(SoupError, match=r"answers to \[2, 3\] images, expected the same split"):
        fuse_answers(splits, Fusion(**{**ALL, "max_detections": 3}, mode="union"))
