"""Matches of single images: equal to COCOeval's own, bit for bit, and to a loop over the VOC devkit's rule."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soup import SoupError
from soup.tasks.matching import coco_matches, limited, overlaps, positives, run_positions, voc_matches
from tests.soup.box_sets import RANGES, coco_eval, listed, scene

THRESHOLDS = np.linspace(0.5, 0.95, 10)
AREAS = ((0.0, 1e10), (0.0, 32.0**2), (32.0**2, 96.0**2), (96.0**2, 1e10))
SEEDS = st.integers(0, 2**32 - 1)
BOX = (10, 10, 50, 50)


def same_as_cocoeval(answers, targets, classes):
    """Every match, ignored detection and counted truth against COCOeval.evalImgs, in all area ranges."""
    evaluation = coco_eval(answers, targets, classes)
    found = iter(evaluation.evalImgs)
    ours = [coco_matches(limited(answers), targets, thresholds=THRESHOLDS, area=area) for area in AREAS]
    counted = [positives(targets, classes, area=area) for area in AREAS]
    labels = limited(answers)["labels"]
    order = np.argsort(-answers["scores"], axis=1, kind="stable")
    for label in range(classes):
        for area in range(len(RANGES)):
            for image in range(len(labels)):
                theirs = next(found)
                places = [place for place in order[image] if labels[image, place] == label]
                matched, ignored = (flags[image, places].T for flags in ours[area])
                if theirs is None:
                    assert not matched.size
                    assert not counted[area][image, label]
                    continue
                np.testing.assert_array_equal(matched, theirs["dtMatches"] > 0)
                np.testing.assert_array_equal(ignored, theirs["dtIgnore"])
                assert counted[area][image, label] == np.count_nonzero(theirs["gtIgnore"] == 0)


@settings(max_examples=150, deadline=None)
@given(SEEDS, st.sampled_from([1, 3]), st.sampled_from([1, 6]), st.sampled_from([1, 12]), st.sampled_from([0.0, 0.3]))
def test_matches_are_those_of_cocoeval(seed, classes, truths, found, crowd):
    same_as_cocoeval(*scene(seed, classes=classes, truths=truths, found=found, crowd=crowd), classes)


def test_beyond_a_hundred_of_a_class_and_image_nothing_counts_as_in_cocoeval():
    answers, targets = scene(3, images=3, classes=2, truths=8, found=260)
    assert (limited(answers)["labels"] < 0).sum() > (answers["labels"] < 0).sum()
    same_as_cocoeval(answers, targets, 2)


def test_answers_that_are_not_sorted_by_score_are_matched_by_score():
    answers, targets = scene(11, images=4, found=20)
    shuffled = {name: array[:, ::-1] for name, array in answers.items()}
    same_as_cocoeval(shuffled, targets, 3)


def coco(truths, found, area=AREAS[0]):
    """Matched and ignored at 0.5 of one image's detections."""
    matched, ignored = coco_matches(*listed([truths], [found]), thresholds=np.array([0.5]), area=area)
    return matched[0, :, 0].tolist(), ignored[0, :, 0].tolist()


def test_a_box_is_taken_once_and_by_the_higher_score():
    assert coco([(BOX, 0)], [(BOX, 0.4, 0), ((10, 10, 50, 40), 0.9, 0)]) == ([False, True], [False, False])


def test_other_classes_never_match():
    assert coco([(BOX, 0)], [(BOX, 0.9, 1)]) == ([False], [False])


def test_a_crowd_takes_any_number_of_detections_by_the_share_that_it_covers_and_ignores_them():
    inside = (12, 12, 20, 20)
    assert coco([(BOX, 0, True)], [(inside, 0.9, 0), (inside, 0.8, 0), ((40, 40, 90, 90), 0.7, 0)]) == (
        [True, True, False], [True, True, False],
    )  # fmt: skip


def test_a_box_that_counts_is_preferred_to_a_crowd_of_higher_iou():
    assert coco([(BOX, 0, True), ((10, 10, 50, 34), 0)], [(BOX, 0.9, 0)]) == ([True], [False])


def test_of_equal_iou_the_later_box_is_taken():
    """Then the second detection, which fits the earlier box alone, finds it free."""
    left, right, between = (0, 0, 40, 40), (20, 0, 60, 40), (10, 0, 50, 40)
    assert coco([(left, 0), (right, 0)], [(between, 0.9, 0), (left, 0.8, 0)])[0] == [True, True]
    assert coco([(left, 0), (right, 0)], [(between, 0.9, 0), (right, 0.8, 0)])[0] == [True, False]


def test_a_false_alarm_out_of_the_range_of_areas_is_ignored():
    assert coco([], [(BOX, 0.9, 0)], area=AREAS[1]) == ([False], [True])
    assert coco([], [(BOX, 0.9, 0)], area=AREAS[2]) == ([False], [False])


def test_both_ends_of_a_range_are_in_it():
    targets = listed([[((0, 0, 32, 32), 0), ((0, 0, 96, 96), 0)]], [[]])[1]
    assert [int(positives(targets, 1, area=area).sum()) for area in AREAS] == [2, 1, 2, 1]


def test_overlaps_are_iou_without_the_pixel_and_minus_one_elsewhere():
    answers, targets = listed([[((0, 0, 10, 10), 0), ((0, 0, 10, 10), 1)]], [[((5, 0, 15, 10), 0.9, 0)]], places=2)
    expected = [[[50 / 150, -1], [-1, -1]]]
    np.testing.assert_array_equal(overlaps(answers, targets, crowd=targets["crowd"]), expected)


def devkit(answers, targets, threshold):
    """The rule of the devkit's VOCevaldet.m for one image after the other, on continuous corners."""
    matched, ignored = np.zeros(answers["labels"].shape, bool), np.zeros(answers["labels"].shape, bool)
    for image, labels in enumerate(answers["labels"]):
        used = set()
        for place in sorted(np.flatnonzero(labels >= 0), key=lambda place: -answers["scores"][image, place]):
            best, at = -np.inf, None
            x1, y1, x2, y2 = answers["boxes"][image, place].tolist()
            for truth, (a1, b1, a2, b2) in enumerate(targets["boxes"][image].tolist()):
                width, height = min(x2, a2) - max(x1, a1), min(y2, b2) - max(y1, b1)
                if targets["labels"][image, truth] == labels[place] and width > 0 and height > 0:
                    both = width * height
                    overlap = both / ((x2 - x1) * (y2 - y1) + (a2 - a1) * (b2 - b1) - both)
                    if overlap > best:
                        best, at = overlap, truth
            if best >= threshold:
                ignored[image, place] = targets["crowd"][image, at]
                matched[image, place] = not targets["crowd"][image, at] and at not in used
                used.add(at)
    return matched, ignored


@settings(max_examples=150, deadline=None)
@given(SEEDS, st.sampled_from([1, 3]), st.sampled_from([0.0, 0.4]), st.sampled_from([1, 6]))
def test_voc_matches_are_those_of_the_devkits_rule(seed, classes, difficult, truths):
    answers, targets = scene(seed, classes=classes, crowd=difficult, truths=truths, found=16)
    expected = devkit(answers, targets, 0.5)
    for ours, theirs in zip(voc_matches(answers, targets, threshold=0.5), expected, strict=True):
        np.testing.assert_array_equal(ours[:, :, 0], theirs)


def test_in_voc_the_best_box_decides_even_where_it_is_taken_and_another_is_free():
    """COCO gives the second detection the free box."""
    truths = [((0, 0, 40, 40), 0), ((0, 8, 40, 48), 0)]
    found = [((0, 0, 40, 40), 0.9, 0), ((0, 2, 40, 42), 0.8, 0)]
    matched, ignored = voc_matches(*listed([truths], [found]), threshold=0.5)
    assert (matched[0, :, 0].tolist(), ignored.any()) == ([True, False], False)
    assert coco(truths, found) == ([True, True], [False, False])


def test_an_iou_of_the_threshold_is_enough():
    truths, found = [((0, 0, 20, 20), 0)], [((0, 0, 20, 10), 0.9, 0)]
    assert coco(truths, found)[0] == [True]
    assert voc_matches(*listed([truths], [found]), threshold=0.5)[0].all()


def test_without_truth_or_detections_nothing_matches():
    for truths, found in (([], []), ([(BOX, 0)], []), ([], [(BOX, 0.5, 0)])):
        answers, targets = listed([truths], [found])
        nothing = {name: array[:, :0] if name in ("boxes", "labels", "crowd", "area") and not truths else array
                   for name, array in targets.items()}  # fmt: skip
        for flags in voc_matches(answers, nothing, threshold=0.5):
            assert not flags.any()
        for flags in coco_matches(answers, nothing, thresholds=THRESHOLDS, area=AREAS[0]):
            assert flags.shape == (1, 1, 10)
            assert not flags.any()


def test_places_in_runs_of_equal_keys():
    assert run_positions(np.array([1, 1, 1, 2]), np.array([0, 0, 5, 5])).tolist() == [0, 1, 0, 0]
    assert run_positions(np.zeros(0)).tolist() == []


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(SoupError, match=r"pip install 'edgesoup\[detection\]'") as raised:
        coco([(BOX, 0)], [(BOX, 0.9, 0)])
    assert raised.value.kind == "environment"
